"""Changes of users, groups and tokens, and who exists when a server starts for the first time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from bundles.errors import Conflict, NotFound, NotPermitted, UsageError
from bundles.model import new_uuid
from bundles.server import schema
from bundles.server.accounts import (
    ACCESS_SECONDS,
    REFRESH_SECONDS,
    ROOT_ID,
    ROOT_NAME,
    WORKER_SECONDS,
    Caller,
    Group,
    Token,
    User,
    digest,
    new_token,
)
from bundles.server.books import Books

HOME_KIND = "home"
GIVEN_KIND = "given"
SHORTEST_GIVEN_TOKEN = 20
"""Characters. Of a token only one round of sha256 is kept, so that it must not be a guess away."""


def check_given(token: str) -> str:
    """The token without space around it. Raises UsageError for one that is too short, or that no
    header can carry; it is not shown."""
    text = token.strip()
    if len(text) < SHORTEST_GIVEN_TOKEN or not text.isascii() or not text.isprintable():
        raise UsageError(
            f"the token given to this server cannot be used: it must have at least "
            f"{SHORTEST_GIVEN_TOKEN} printable ASCII characters, such as `openssl rand -hex 24` "
            "prints"
        )
    if " " in text:
        raise UsageError("the token given to this server cannot be used: there is a space in it")
    return text


def bootstrap(
    connection: Connection, token_path: Path, now: float, given: str | None = None
) -> None:
    """See to it that the admin exists, the token file holds a token of theirs, and ``given`` (as
    check_given returns it) is another: until a server is started without it.

    Raises UsageError when ``given`` is somebody's token already.
    """
    with connection.begin():
        if connection.execute(select(schema.user.c.id).limit(1)).first() is None:
            connection.execute(
                insert(schema.user).values(
                    id=ROOT_ID, name=ROOT_NAME, password=None, is_root=True, created=now
                )
            )
        _keep_home_token(connection, token_path)
        _take_given(connection, given)


def _keep_home_token(connection: Connection, token_path: Path) -> None:
    table = schema.token
    kept = set(connection.scalars(select(table.c.digest).where(table.c.kind == HOME_KIND)).all())
    try:
        present = token_path.read_text().strip()
    except OSError:
        present = ""
    if present and digest(present) in kept:
        os.chmod(token_path, 0o600)
        return
    # A file that is gone may have gone anywhere: what was in it opens nothing any more.
    connection.execute(delete(table).where(table.c.kind == HOME_KIND))
    text = new_token()
    connection.execute(
        insert(table).values(digest=digest(text), user_id=ROOT_ID, kind=HOME_KIND, expires=None)
    )
    write_private(token_path, text + "\n")


def _take_given(connection: Connection, given: str | None) -> None:
    table = schema.token
    connection.execute(delete(table).where(table.c.kind == GIVEN_KIND))
    if given is None:
        return
    key = digest(given)
    kind = connection.execute(select(table.c.kind).where(table.c.digest == key)).scalar()
    if kind == HOME_KIND:
        return  # the token file's own
    if kind is not None:
        # A worker's, perhaps, whose environment this server was started in.
        raise UsageError(
            f"the token given to this server is one of its own {kind} tokens: the administrator "
            "must have another"
        )
    connection.execute(
        insert(table).values(digest=key, user_id=ROOT_ID, kind=GIVEN_KIND, expires=None)
    )


def write_private(path: Path, text: str) -> None:
    """A file that nobody else may read, all of it or none."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# Tokens


def _add_token(books: Books, text: str, user_id: str, kind: str, seconds: float) -> Token:
    token = Token(digest(text), user_id, kind, books.now + seconds)
    books.accounts.tokens[token.digest] = token
    row = {"digest": token.digest, "user_id": user_id, "kind": kind, "expires": token.expires}
    books.statements.append((insert(schema.token), [row]))
    return token


def grant(books: Books, user_id: str) -> tuple[str, str]:
    """A new access token and a refresh token for it; expired ones are thrown away."""
    table = schema.token.c
    books.statements.append((delete(schema.token).where(table.expires < books.now), []))
    for token in list(books.accounts.tokens.values()):
        if token.expires is not None and token.expires < books.now:
            del books.accounts.tokens[token.digest]
    access, refresh = new_token(), new_token()
    _add_token(books, access, user_id, "access", ACCESS_SECONDS)
    _add_token(books, refresh, user_id, "refresh", REFRESH_SECONDS)
    return access, refresh


def grant_worker(books: Books, user_id: str) -> tuple[str, float]:
    """A new worker's token and when it expires."""
    text = new_token()
    token = _add_token(books, text, user_id, "worker", WORKER_SECONDS)
    return text, token.expires or 0.0


def renew_token(books: Books, token_digest: str, expires: float) -> None:
    """A worker's token was used."""
    token = books.accounts.tokens.get(token_digest)
    if token is None:
        return
    books.accounts.tokens[token_digest] = replace(token, expires=expires)
    table = schema.token.c
    books.statements.append(
        (
            update(schema.token)
            .where(table.digest == bindparam("key"))
            .values(expires=bindparam("until")),
            [{"key": token_digest, "until": expires}],
        )
    )


def revoke(books: Books, text: str, user_id: str | None = None) -> None:
    """The token opens nothing any more; one that is none already is no error."""
    token = books.accounts.tokens.get(digest(text))
    if token is None or (user_id is not None and token.user_id != user_id):
        return
    del books.accounts.tokens[token.digest]
    table = schema.token.c
    books.statements.append((delete(schema.token).where(table.digest == token.digest), []))


# Users and groups


def add_user(books: Books, caller: Caller, name: str, password: str) -> User:
    """``password``: as hash_password made it. Raises NotPermitted, Conflict."""
    if not caller.is_root:
        raise NotPermitted("only the admin may add users")
    if name in books.accounts.by_name:
        raise Conflict(f"there is a user {name!r} already")
    user = User(new_uuid()[2:], name, password, False, books.now)
    books.accounts.add_user(user)
    row = {"id": user.id, "name": name, "password": password, "is_root": False,
           "created": user.created}  # fmt: skip
    books.statements.append((insert(schema.user), [row]))
    return user


def add_group(books: Books, caller: Caller, name: str) -> Group:
    """A group with the caller as owner and first member. Raises Conflict."""
    if name in books.accounts.groups:
        raise Conflict(f"there is a group {name!r} already")
    group = Group(new_uuid()[2:], name, caller.id, frozenset({caller.id}))
    books.accounts.groups[name] = group
    row = {"id": group.id, "name": name, "owner_id": caller.id}
    books.statements.append((insert(schema.group), [row]))
    member = {"group_id": group.id, "user_id": caller.id}
    books.statements.append((insert(schema.group_member), [member]))
    return group


def add_member(books: Books, caller: Caller, group_name: str, user_name: str) -> Group:
    """Raises NotFound, NotPermitted unless the caller owns the group or is the admin."""
    group = books.accounts.groups.get(group_name)
    if group is None:
        raise NotFound(f"there is no group {group_name!r}")
    if not caller.is_root and caller.id != group.owner_id:
        raise NotPermitted(f"only the owner of the group {group_name!r} may add members")
    user = books.accounts.by_name.get(user_name)
    if user is None:
        raise NotFound(f"there is no user {user_name!r}")
    if user.id in group.members:
        return group
    group = replace(group, members=group.members | {user.id})
    books.accounts.groups[group_name] = group
    member = {"group_id": group.id, "user_id": user.id}
    books.statements.append((insert(schema.group_member), [member]))
    for worker in books.workers.values():
        if worker.is_live and worker.facts.get("group_name") == group_name:
            books.make_offer(worker)
    return group
