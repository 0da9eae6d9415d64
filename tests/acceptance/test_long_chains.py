from __future__ import annotations

from serving import Server

from bundles.model import new_uuid

LENGTH = 3000


def test_the_end_of_one_bundle_ends_thousands_that_wait_in_a_row(server: Server) -> None:
    uuids = [new_uuid() for _ in range(LENGTH)]
    with server.client() as client:
        client.create(
            [
                {
                    "uuid": uuid,
                    "bundle_type": "run",
                    "command": "true",
                    "dependencies": [{"child_path": "before", "parent_uuid": before}]
                    if before
                    else [],
                    "metadata": {"name": "link", "request_priority": 0},
                }
                for before, uuid in zip([None, *uuids], uuids, strict=False)
            ]
        )
        client.act([{"type": "kill", "uuid": uuids[0]}])
        assert client.count(["state=failed"]) == LENGTH - 1
        assert uuids[-2] in client.bundle(uuids[-1]).metadata["failure_message"]
