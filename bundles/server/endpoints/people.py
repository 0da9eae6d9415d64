"""Logging in, users, groups and workers' tokens."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from bundles.errors import BundlesError
from bundles.server import leases, registry
from bundles.server.accounts import (
    ACCESS_SECONDS,
    Accounts,
    Caller,
    Group,
    check_password,
    digest,
    hash_password,
)
from bundles.server.books import Books
from bundles.server.rendering import document, user_document
from bundles.server.requests import (
    LeaseProof,
    NewGroup,
    NewMember,
    NewUser,
    attributes_of_one,
    parse,
)
from bundles.server.service import (
    Service,
    empty,
    error_reply,
    parse_json,
    read_body,
    read_json,
    reply,
    route,
)

FORM_LIMIT_BYTES = 64 * 1024


def routes(service: Service) -> list[BaseRoute]:
    async def log_in(request: Request) -> Response:
        try:
            return await _token(service, request)
        except BundlesError as error:
            return error_reply(error)

    return [
        Route("/rest/oauth2/token", log_in, methods=["POST"]),
        route(service, "POST", "/oauth2/revoke", _revoke, is_worker_allowed=True),
        route(service, "GET", "/user", _user, is_worker_allowed=True),
        route(service, "GET", "/users", _users),
        route(service, "POST", "/users", _add_user),
        route(service, "GET", "/groups", _groups),
        route(service, "POST", "/groups", _add_group),
        route(service, "POST", "/groups/{name}/members", _add_member),
        route(service, "POST", "/worker-tokens", _worker_token),
    ]


async def _form(request: Request) -> dict[str, str]:
    body = await read_body(request, FORM_LIMIT_BYTES)
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
    return {key: values[0] for key, values in fields.items()}


async def _token(service: Service, request: Request) -> Response:
    form = await _form(request)
    grant_type = form.get("grant_type")
    accounts = service.desk.accounts
    user_id: str | None = None
    if grant_type == "password":
        user = accounts.by_name.get(form.get("username", ""))
        kept = user.password if user else None
        is_right = await asyncio.to_thread(check_password, form.get("password", ""), kept)
        user_id = user.id if user and is_right else None
    elif grant_type == "refresh_token":
        token = accounts.tokens.get(digest(form.get("refresh_token", "")))
        if token and token.kind == "refresh" and (token.expires or 0) > service.clock.wall():
            user_id = token.user_id
    else:
        return reply({"error": "unsupported_grant_type"}, 400)
    if user_id is None:
        return reply(
            {"error": "invalid_grant", "error_description": "Invalid credentials given."}, 401
        )
    owner = user_id

    def grant(books: Books) -> tuple[str, str]:
        if grant_type == "refresh_token":
            registry.revoke(books, form["refresh_token"])
        return registry.grant(books, owner)

    access, refresh = await service.act(grant)
    return reply(
        {
            "access_token": access,
            "expires_in": int(ACCESS_SECONDS),
            "token_type": "Bearer",
            "scope": "default",
            "refresh_token": refresh,
        }
    )


async def _revoke(service: Service, request: Request, caller: Caller) -> Response:
    form = await _form(request)
    await service.act(lambda books: registry.revoke(books, form.get("token", ""), caller.id))
    return empty()


async def _user(service: Service, request: Request, caller: Caller) -> Response:
    scope = "worker" if caller.is_worker else "user"
    data = user_document(caller.user, scope=scope)
    data["attributes"]["is_root_user"] = caller.is_root
    return reply(document(data))


async def _users(service: Service, request: Request, caller: Caller) -> Response:
    users = list(service.desk.accounts.users.values()) if caller.is_root else [caller.user]
    return reply(document([user_document(user) for user in users]))


async def _add_user(service: Service, request: Request, caller: Caller) -> Response:
    asked = parse(NewUser, attributes_of_one(await read_json(request), "users"))
    password = await asyncio.to_thread(hash_password, asked.password)
    user = await service.act(
        lambda books: registry.add_user(books, caller, asked.user_name, password)
    )
    return reply(document(user_document(user)), 201)


async def _groups(service: Service, request: Request, caller: Caller) -> Response:
    accounts = service.desk.accounts
    groups = [
        _group_document(accounts, group)
        for group in list(accounts.groups.values())
        if caller.is_root or caller.id in group.members or caller.id == group.owner_id
    ]
    return reply(document(groups))


async def _add_group(service: Service, request: Request, caller: Caller) -> Response:
    asked = parse(NewGroup, attributes_of_one(await read_json(request), "groups"))
    group = await service.act(lambda books: registry.add_group(books, caller, asked.name))
    return reply(document(_group_document(service.desk.accounts, group)), 201)


async def _add_member(service: Service, request: Request, caller: Caller) -> Response:
    asked = parse(NewMember, attributes_of_one(await read_json(request), "members"))
    name = request.path_params["name"]
    group = await service.act(
        lambda books: registry.add_member(books, caller, name, asked.user_name)
    )
    return reply(document(_group_document(service.desk.accounts, group)))


async def _worker_token(service: Service, request: Request, caller: Caller) -> Response:
    body = await read_body(request)
    proof = parse(LeaseProof, parse_json(body)) if body else None

    def grant(books: Books) -> tuple[str, float]:
        if proof is not None:
            leases.check(books, caller, proof.lease, proof.fence)
        return registry.grant_worker(books, caller.id)

    token, expires = await service.act(grant)
    return reply(
        document({"type": "worker-tokens", "attributes": {"token": token, "expires": expires}}),
        201,
    )


def _group_document(accounts: Accounts, group: Group) -> dict[str, object]:
    names = [accounts.users[user_id].name for user_id in group.members if user_id in accounts.users]
    return {
        "type": "groups",
        "id": group.id,
        "attributes": {"name": group.name, "owner_id": group.owner_id, "members": sorted(names)},
    }
