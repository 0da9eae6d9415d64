"""A server that lives in this process, for the command `bundles`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from bundles.client import Client
from bundles.home import Credentials

URL = "http://server.test"


def uuid_of(digits: str) -> str:
    return "0x" + digits.ljust(32, "0")


@dataclass
class Desk:
    """Answers what a test gives it; fails on what it was not told to expect."""

    bundles: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[tuple[str, str], Callable[[httpx.Request], httpx.Response]] = field(
        default_factory=dict
    )
    requests: list[httpx.Request] = field(default_factory=list)
    features: str = ""

    def add(self, uuid: str, name: str = "", state: str = "ready", **attributes: Any) -> str:
        metadata = {"name": name, **attributes.pop("metadata", {})}
        self.bundles.append(
            {
                "type": "bundles",
                "id": uuid,
                "attributes": {
                    "uuid": uuid,
                    "bundle_type": "run",
                    "state": state,
                    "metadata": metadata,
                    **attributes,
                },
            }
        )
        return uuid

    def on(self, method: str, path: str, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers[method, path] = answer

    def sent(self, method: str, path: str) -> list[Any]:
        """The documents of the requests of that kind."""
        return [
            json.loads(request.content)
            for request in self.requests
            if request.method == method and request.url.path == f"/rest/{path}"
        ]

    def asked(self) -> list[str]:
        return [f"{r.method} {r.url.path.removeprefix('/rest/')}" for r in self.requests]

    def client(self) -> Client:
        return Client(URL, Credentials(token="t"), transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        path = request.url.path.removeprefix("/rest/")
        given = self.answers.get((request.method, path))
        response = given(request) if given else self._default(request, path)
        if self.features:
            response.headers["Bundles-Features"] = self.features
        return response

    def _default(self, request: httpx.Request, path: str) -> httpx.Response:
        if (request.method, path) == ("POST", "bundles"):
            return httpx.Response(
                200,
                json={
                    "data": [
                        {**document, "attributes": {"state": "created", **document["attributes"]}}
                        for document in json.loads(request.content)["data"]
                    ]
                },
            )
        if (request.method, path) == ("GET", "bundles"):
            return httpx.Response(200, json={"data": self._selected(request)})
        if request.method == "GET" and path.startswith("bundles/0x") and path.count("/") == 1:
            for bundle in self.bundles:
                if bundle["id"] == path.removeprefix("bundles/"):
                    return httpx.Response(200, json={"data": bundle})
            return httpx.Response(404, text="there is no such bundle")
        raise AssertionError(f"nobody expected {request.method} {path}")

    def _selected(self, request: httpx.Request) -> list[dict[str, Any]]:
        found = self.bundles
        specs = request.url.params.get_list("specs")
        if specs:
            return [bundle for bundle in found if bundle["id"] in specs]
        for word in request.url.params.get_list("keywords"):
            if word.startswith("uuid="):
                start = word.removeprefix("uuid=").rstrip("%")
                found = [bundle for bundle in found if bundle["id"].startswith(start)]
            elif word.startswith("name="):
                name = word.removeprefix("name=")
                found = [
                    bundle
                    for bundle in found
                    if bundle["attributes"]["metadata"]["name"] in name.split(",")
                ]
        return found


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]
