"""The client with a server that offers nothing beyond CodaLab's protocol."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from bundles.client import Client
from bundles.errors import ServerFault, UsageError
from bundles.home import Credentials
from bundles.model import new_uuid

URL = "http://127.0.0.1:1"
WORKSHEET = "0x" + "a" * 32


class Codalab:
    """Makes bundles on its one worksheet; ``bundles`` by uuid."""

    def __init__(self) -> None:
        self.bundles: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.fails = False

    def client(self) -> Client:
        return Client(URL, Credentials(token="t"), transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/rest/")
        self.asked.append(f"{request.method} {path}")
        match request.method, path:
            case "GET", "worksheets":
                assert request.url.params["specs"] == "/"
                return httpx.Response(200, json={"data": [{"id": WORKSHEET}]})
            case "GET", "bundles":
                uuids = request.url.params.get_list("specs")
                if any(uuid not in self.bundles for uuid in uuids):
                    return httpx.Response(404, text="bundle not found")
                return self._shown(uuids)
            case "POST", "bundles":
                return self._make(request)
            case "DELETE", "bundles":
                uuids = [element["id"] for element in json.loads(request.content)["data"]]
                return httpx.Response(200, json={"meta": {"ids": uuids, "version": "1.7.5"}})
        raise AssertionError(f"nobody expected {request.method} {path}")

    def _make(self, request: httpx.Request) -> httpx.Response:
        if request.url.params.get("worksheet") != WORKSHEET:
            return httpx.Response(400, text="a worksheet must be specified")
        asked = [element["attributes"] for element in json.loads(request.content)["data"]]
        if self.fails or any(bundle["uuid"] in self.bundles for bundle in asked):
            return httpx.Response(500, text="Unexpected Internal Error (IntegrityError)")
        for bundle in asked:
            if "allow_failed_dependencies" not in bundle["metadata"]:
                return httpx.Response(400, text="Missing metadata key: allow_failed_dependencies")
            self.bundles[bundle["uuid"]] = bundle
        return self._shown([bundle["uuid"] for bundle in asked])

    def _shown(self, uuids: list[str]) -> httpx.Response:
        data = [
            {"type": "bundles", "id": u, "attributes": {"state": "created", **self.bundles[u]}}
            for u in uuids
        ]
        return httpx.Response(200, json={"data": data})


def run(uuid: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "bundle_type": "run",
        "command": "true",
        "metadata": {"name": "r", "request_cpus": 4},
    }


def test_a_bundle_is_made_on_the_home_worksheet_with_every_field_of_its_metadata() -> None:
    codalab, uuid = Codalab(), new_uuid()
    with codalab.client() as client:
        [made] = client.create([run(uuid)])
        client.create([run(new_uuid())])
    assert (made.uuid, made.metadata["request_cpus"]) == (uuid, 4)
    assert codalab.bundles[uuid]["metadata"]["request_memory"] == "2g"
    assert codalab.asked == ["POST bundles", "GET worksheets", "POST bundles", "POST bundles"]


def test_a_creation_that_is_repeated_finds_what_the_first_one_made() -> None:
    codalab, uuid = Codalab(), new_uuid()
    with codalab.client() as client:
        client.create([run(uuid)])
        [again] = client.create([run(uuid)])
    assert again.uuid == uuid
    assert len(codalab.bundles) == 1


def test_a_server_that_fails_and_has_made_nothing_is_a_fault() -> None:
    codalab = Codalab()
    codalab.fails = True
    with codalab.client() as client, pytest.raises(ServerFault, match="Internal Error"):
        client.create([run(new_uuid())])


def test_the_embedded_servers_refusal_is_not_taken_for_a_missing_worksheet() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "POST"
        return httpx.Response(400, text="no", headers={"Bundles-Features": "batch"})

    transport = httpx.MockTransport(answer)
    with (
        Client(URL, Credentials(token="t"), transport=transport) as client,
        pytest.raises(UsageError, match="no"),
    ):
        client.create([run(new_uuid())])


def test_what_was_deleted_is_told_as_codalab_tells_it() -> None:
    uuid = new_uuid()
    with Codalab().client() as client:
        assert client.delete([uuid]) == [uuid]


@pytest.mark.parametrize(
    "answer", ["<html>Welcome</html>", "[]", "{}", '{"token_type": "Bearer", "access_token": null']
)
def test_what_answers_a_password_with_no_token_is_a_fault(answer: str) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=answer))
    with (
        Client(URL, Credentials(username="u", password="p"), transport=transport) as client,
        pytest.raises(ServerFault, match="something else than a token"),
    ):
        client.whoami()
