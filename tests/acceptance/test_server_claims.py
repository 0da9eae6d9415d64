"""Claims, sessions, leases: what keeps a bundle from being lost, or committed twice."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server
from wire_worker import InBackground, WireWorker

from bundles.client import Client
from bundles.errors import Conflict, NotFound, NotPermitted
from bundles.home import Credentials
from bundles.model import State


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client(patience_seconds=30) as made:
        yield made


def run(client: Client, command: str = "true", **metadata: Any) -> str:
    document = {"bundle_type": "run", "command": command, "metadata": metadata}
    return client.create([document])[0].uuid


def states(client: Client, uuid: str) -> list[str]:
    return [change.to_state for change in client.changes(0).changes if change.uuid == uuid]


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


def wait_for(client: Client, uuid: str, state: str) -> None:
    """Until the change feed has told of it."""
    cursor = 0
    while True:
        found = client.changes(cursor, wait_seconds=20)
        assert found.cursor > cursor, f"{uuid} does not become {state}"
        cursor = found.cursor
        if any(change.uuid == uuid and change.to_state == state for change in found.changes):
            return


def test_a_run_goes_through_its_whole_life(client: Client) -> None:
    worker = WireWorker(client)
    uuid = run(client, "echo hello")
    message = worker.take()
    assert message["bundle"]["command"] == "echo hello"
    assert message["resources"]["cpus"] == 1
    worker.say(worker.run(message, "running", run_status="at it", container_time_total=1.5))
    shown = client.bundle(uuid)
    assert (shown.state, shown.metadata["run_status"], shown.metadata["time"]) == (
        "running",
        "at it",
        1.5,
    )
    worker.finish(message, stdout="hello")
    assert client.bundle(uuid).state == "ready"
    with client.download(uuid, "stdout") as download:
        assert b"".join(download.chunks()) == b"hello"
    assert states(client, uuid) == [
        "created",
        "staged",
        "starting",
        "preparing",
        "running",
        "ready",
    ]


def test_a_message_is_sent_again_until_it_is_acknowledged(client: Client) -> None:
    worker = WireWorker(client)
    run(client)
    first = worker.say(wait_seconds=10)
    again = worker.say(wait_seconds=10)
    assert first == again
    assert worker.say(worker.run(first[0]), acknowledged=first) == []


def test_a_waiting_check_in_is_answered_when_a_bundle_is_queued(client: Client) -> None:
    worker = WireWorker(client)
    worker.say()
    waiting = InBackground(lambda: worker.say(wait_seconds=60))
    uuid = run(client)
    [message] = waiting.result()
    assert message["uuid"] == uuid


def test_two_bundles_come_in_one_reply(client: Client) -> None:
    uuids = {run(client), run(client)}
    worker = WireWorker(client)
    assert {message["uuid"] for message in worker.say(wait_seconds=10)} == uuids


def test_results_of_an_old_claim_are_refused_and_the_run_is_revoked(client: Client) -> None:
    uuid = run(client)
    old, new = WireWorker(client, "old"), WireWorker(client, "new")
    message = old.take()
    [told] = old.say(old.run(message, "staged"), is_terminating=True)
    assert (told["type"], told["claim"]) == ("revoke", 1)
    old.say(acknowledged=[told], is_terminating=True)
    second = new.take()
    assert (second["uuid"], second["claim"]) == (uuid, 2)
    with pytest.raises(Conflict):
        old.upload(message, stdout="old")
    assert kinds(old.say(old.run(message, "finalizing", exitcode=1), is_terminating=True)) == [
        "revoke"
    ]
    assert client.bundle(uuid).state == "preparing"
    new.finish(second, stdout="new")
    with client.download(uuid, "stdout") as download:
        assert b"".join(download.chunks()) == b"new"
    with pytest.raises(Conflict):
        new.upload(second, stdout="twice")


def test_an_old_claim_of_the_same_worker_counts_no_more_than_another_workers(
    client: Client,
) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    first = worker.take()
    [second] = [told for told in worker.say(wait_seconds=10) if told["type"] == "run"]
    assert (first["claim"], second["claim"]) == (1, 2)
    replies = worker.say(worker.run(first, "finalizing", exitcode=1), acknowledged=[])
    assert ("revoke", 1) in [(told["type"], told["claim"]) for told in replies]
    assert client.bundle(uuid).state == "starting"
    worker.say(worker.run(second, "running"), acknowledged=[*replies, second])
    worker.finish(second)
    assert client.bundle(uuid).state == "ready"


def test_what_was_uploaded_for_a_run_that_is_staged_again_is_gone(
    server: Server, client: Client
) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    message = worker.take()
    worker.upload(message, stdout="half")
    with client.download(uuid, "stdout") as download:
        assert b"".join(download.chunks()) == b"half"
    worker.leave()
    with pytest.raises(NotFound):
        client.contents_info(uuid, "stdout")
    server.stop()  # which waits for what goes on in the background
    assert list((server.home.path / "contents").glob("??/*")) == []
    server.start()


def test_the_end_that_is_reported_twice_is_answered_twice(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    message = worker.take()
    worker.finish(message)
    assert kinds(worker.say(worker.run(message, "finalizing", exitcode=0))) == ["mark_finalized"]
    assert states(client, uuid).count("ready") == 1


def test_an_older_report_that_arrives_late_changes_nothing(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    message = worker.take()
    worker.say(worker.run(message, "running"))
    worker.say(worker.run(message, "staged"), sequence=worker.sequence - 1)
    worker.say(sequence=worker.sequence - 1)
    assert client.bundle(uuid).state == "running"


def test_states_do_not_go_back(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    message = worker.take()
    worker.say(worker.run(message, "running"))
    worker.say(worker.run(message, "preparing"))
    assert client.bundle(uuid).state == "running"


def test_a_run_that_its_worker_no_longer_lists_is_staged_again(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    worker.take()
    [again] = worker.say(wait_seconds=10)
    assert (again["type"], again["uuid"], again["claim"]) == ("run", uuid, 2)
    assert states(client, uuid)[-2:] == ["staged", "starting"]


def test_a_run_that_was_not_acknowledged_is_not_lost(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    [message] = worker.say(wait_seconds=10)
    worker.say()
    worker.say()
    assert client.bundle(uuid).claim == message["claim"] == 1


def test_a_new_session_takes_the_worker_over_and_keeps_what_it_lists(client: Client) -> None:
    kept, lost = run(client), run(client)
    old = WireWorker(client)
    messages = old.say(wait_seconds=10)
    old.say(*[old.run(message) for message in messages], acknowledged=messages)
    waiting = InBackground(lambda: old.say(*map(old.run, messages), wait_seconds=60))
    new = WireWorker(client)
    [message] = [message for message in messages if message["uuid"] == kept]
    replies = new.say(new.run(message, "running"), wait_seconds=10)
    assert [(reply["uuid"], reply["claim"]) for reply in replies] == [(lost, 2)]
    assert client.bundle(kept).state == "running"
    with pytest.raises(Conflict):
        old.say(*map(old.run, messages))
    with pytest.raises(Conflict):
        old.leave()
    with contextlib.suppress(Conflict):
        assert waiting.result() == []
    assert client.bundle(kept).claim == 1


def test_a_worker_id_of_another_user_is_refused(server: Server, client: Client) -> None:
    add_user(client, "ann")
    WireWorker(client).say()
    with user(server, "ann") as ann, pytest.raises(NotPermitted):
        WireWorker(ann).say()


def test_a_worker_that_checks_out_gives_everything_back(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    worker.take()
    assert worker.leave("idle") == [uuid]
    assert client.workers() == []
    assert client.bundle(uuid).state == "staged"
    with pytest.raises(Conflict):  # a late check-in does not bring it back
        worker.say()
    assert worker.leave("idle") == []


def test_the_owner_of_a_worker_that_is_gone_for_good_gives_its_bundles_back(
    server: Server, client: Client
) -> None:
    add_user(client, "ann")
    worker = WireWorker(client)
    uuid = run(client)
    message = worker.take()
    with user(server, "ann") as ann, pytest.raises(NotPermitted):
        ann.checkout(worker.worker_id, None, "mine now")
    with (
        Client(server.url, Credentials(token=client.worker_token())) as another,
        pytest.raises(NotPermitted),
    ):
        another.checkout(worker.worker_id, None, "a worker of the same user")
    assert client.bundle(uuid).state != "staged"
    assert client.checkout(worker.worker_id, None, "its job has ended") == [uuid]
    assert client.checkout(worker.worker_id, None, "its job has ended") == []
    other = WireWorker(client, "other")
    taken = other.take()
    assert taken["claim"] == 2
    # It lives all the same: nothing of it counts any more.
    with pytest.raises(Conflict):
        worker.say(worker.run(message, "running"))
    with pytest.raises(Conflict):
        client.upload(uuid, b"late", filename="x", claim=1)
    other.finish(taken)
    assert client.bundle(uuid).state == "ready"


def test_a_bundle_whose_worker_is_offline_goes_on_when_its_owner_says_it_is_gone(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path)
    server.start("--worker-timeout-seconds", "1")
    try:
        with server.client() as client:
            worker = WireWorker(client)
            uuid = run(client)
            worker.take()
            wait_for(client, uuid, State.WORKER_OFFLINE)
            assert client.checkout(worker.worker_id, None, "its job has ended") == [uuid]
            assert client.bundle(uuid).state == "staged"
    finally:
        server.stop()


def test_what_a_worker_has_left_over_of_a_deleted_bundle_is_revoked(client: Client) -> None:
    worker = WireWorker(client)
    uuid = run(client)
    message = worker.take()
    client.act([{"type": "kill", "uuid": uuid}])
    worker.upload(message, stdout="")
    worker.say(worker.run(message, "finalizing", failure_message="Kill requested"))
    client.delete([uuid])
    replies = worker.say(worker.run(message, "running"))
    assert "revoke" in kinds(replies)


def test_a_kill_reaches_the_worker_and_ends_the_bundle_killed(client: Client) -> None:
    uuid = run(client)
    worker = WireWorker(client)
    message = worker.take()
    waiting = InBackground(lambda: worker.say(worker.run(message, "running"), wait_seconds=60))
    wait_for(client, uuid, State.RUNNING)
    client.act([{"type": "kill", "uuid": uuid}])
    [kill] = waiting.result()
    assert (kill["type"], kill["claim"]) == ("kill", 1)
    worker.upload(message, stdout="half")
    ended = worker.run(message, "finalizing", exitcode=137, failure_message=kill["kill_message"])
    assert kinds(worker.say(ended, acknowledged=[kill])) == ["mark_finalized"]
    assert client.bundle(uuid).state == "killed"


def test_a_bundle_that_waits_is_killed_at_once_and_its_child_fails(client: Client) -> None:
    uuid = run(client)
    child = client.create(
        [
            {
                "bundle_type": "run",
                "command": "true",
                "dependencies": [{"child_path": "p", "parent_uuid": uuid}],
            }
        ]
    )[0]
    assert child.state == "created"
    client.act([{"type": "kill", "uuid": uuid}])
    assert client.bundle(uuid).state == "killed"
    failed = client.bundle(child.uuid)
    assert failed.state == "failed"
    assert uuid in failed.metadata["failure_message"]
    with pytest.raises(Conflict):
        client.act([{"type": "kill", "uuid": uuid}])


def test_a_worker_that_is_not_heard_of_goes_offline_and_comes_back(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start("--worker-timeout-seconds", "1")
    try:
        with server.client() as client:
            worker = WireWorker(client)
            uuid = run(client)
            message = worker.take()
            wait_for(client, uuid, State.WORKER_OFFLINE)
            assert client.workers() == []
            assert kinds(worker.say(worker.run(message, "running"))) == []
            assert client.bundle(uuid).state == "running"
            worker.finish(message)
            assert client.bundle(uuid).state == "ready"
    finally:
        server.stop()


def test_bundles_of_a_preemptible_worker_that_is_gone_are_staged_again(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start("--worker-timeout-seconds", "1")
    try:
        with server.client() as client:
            gone = WireWorker(client, "gone", preemptible=True)
            uuid = run(client)
            message = gone.take()
            cursor = client.changes(None).cursor
            found = client.changes(cursor, wait_seconds=20, states=["staged"])
            assert [change.uuid for change in found.changes] == [uuid]
            other = WireWorker(client, "other")
            assert other.take()["claim"] == 2
            assert kinds(gone.say(gone.run(message, "running"))) == ["revoke"]
    finally:
        server.stop()


def test_a_bundle_whose_worker_is_offline_is_killed_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start("--worker-timeout-seconds", "1")
    try:
        with server.client() as client:
            worker = WireWorker(client)
            uuid = run(client)
            message = worker.take()
            wait_for(client, uuid, State.WORKER_OFFLINE)
            client.act([{"type": "kill", "uuid": uuid}])
            assert client.bundle(uuid).state == "killed"
            assert kinds(worker.say(worker.run(message, "running"))) == ["revoke"]
    finally:
        server.stop()


def test_a_killed_server_goes_on_where_it_was(server: Server, client: Client) -> None:
    worker = WireWorker(client)
    running, waiting, undelivered = run(client), run(client), run(client)
    messages = {message["uuid"]: message for message in worker.say(wait_seconds=10)}
    [mine] = [uuid for uuid in (running, waiting, undelivered) if uuid not in messages]
    assert mine == undelivered
    message = messages[running]
    worker.say(worker.run(message, "running"), acknowledged=[message])
    client.act([{"type": "kill", "uuid": running}])
    server.stop(signal.SIGKILL)
    server.start()
    replies = worker.say(worker.run(message, "running"), wait_seconds=10)
    assert sorted(kinds(replies)) == ["kill", "run"]
    [again] = [reply for reply in replies if reply["type"] == "run"]
    assert again["id"] == messages[waiting]["id"]
    assert client.bundle(running).state == "running"
    worker.say(worker.run(message, "running"), worker.run(again), acknowledged=replies)
    for one in (message, again):
        worker.upload(one, stdout="")
        ended = [worker.run(each, "finalizing", exitcode=0) for each in (message, again)]
    assert "mark_finalized" in kinds(worker.say(*ended))
    assert [client.bundle(uuid).state for uuid in (running, waiting)] == ["ready", "ready"]


def test_the_killed_server_gives_workers_a_whole_new_lease(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start("--worker-timeout-seconds", "2")
    try:
        with server.client(patience_seconds=20) as client:
            worker = WireWorker(client)
            uuid = run(client)
            worker.take()
            server.stop(signal.SIGKILL)
            server.start("--worker-timeout-seconds", "1000")
            assert client.bundle(uuid).state == "preparing"
            assert [found["worker_id"] for found in client.workers()] == ["w"]
    finally:
        server.stop()


def test_a_worker_token_opens_what_a_worker_needs_and_nothing_else(
    server: Server, client: Client
) -> None:
    data = client.create([{"bundle_type": "dataset"}], wait_for_upload=True)[0].uuid
    client.upload(data, b"data", filename="x", finalize=True)
    with Client(server.url, Credentials(token=client.worker_token())) as limited:
        assert limited.whoami()["scope"] == "worker"
        worker = WireWorker(limited)
        worker.say()
        uuid = client.create(
            [
                {
                    "bundle_type": "run",
                    "command": "true",
                    "dependencies": [{"child_path": "d", "parent_uuid": data}],
                }
            ]
        )[0].uuid
        other = Client(server.url, Credentials(token=client.worker_token()))
        with other, pytest.raises(NotFound):  # another token's worker may not have it
            other.contents_info(data)
        message = worker.take()
        with limited.download(data) as download:
            assert b"".join(download.chunks()) == b"data"
        for forbidden in (
            lambda: limited.search([]),
            lambda: limited.create([{"command": "true"}]),
            lambda: limited.bundle(uuid),
            lambda: limited.delete([uuid]),
            lambda: limited.act([{"type": "kill", "uuid": uuid}]),
            lambda: limited.changes(None),
            lambda: limited.worker_token(),
            lambda: limited.workers(),
        ):
            with pytest.raises(NotPermitted):
                forbidden()
        other = Client(server.url, Credentials(token=client.worker_token()))
        with other, pytest.raises(NotPermitted):
            other.upload(uuid, b"", filename="bundle.tar.gz", claim=message["claim"])
        worker.finish(message)
        with pytest.raises(NotFound):  # it does not run any more
            limited.contents_info(data)


def add_user(client: Client, name: str) -> None:
    attributes = {"user_name": name, "password": "secret"}
    client.request("POST", "users", json={"data": {"type": "users", "attributes": attributes}})


def user(server: Server, name: str) -> Client:
    return Client(server.url, Credentials(username=name, password="secret"))


def test_users_see_and_touch_only_their_own_and_share_workers_by_group(
    server: Server, client: Client
) -> None:
    add_user(client, "ann")
    add_user(client, "bob")
    theirs = run(client)
    with user(server, "ann") as ann, user(server, "bob") as bob:
        client.act([{"type": "kill", "uuid": theirs}])
        mine = run(ann)
        assert [bundle.uuid for bundle in ann.search([])] == [mine]
        for refused in (
            lambda: bob.bundle(mine),
            lambda: bob.act([{"type": "kill", "uuid": mine}]),
            lambda: bob.delete([mine]),
            lambda: bob.contents_info(mine),
        ):
            with pytest.raises(NotFound):
                refused()
        assert bob.changes(0).changes == ()
        with pytest.raises(NotPermitted):
            add_user(ann, "eve")
        # Bob's worker takes Ann's bundle only once they share a group that it is for.
        alone = WireWorker(bob, "alone")
        assert alone.say() == []
        alone.leave()
        bob.request("POST", "groups", json={"data": {"attributes": {"name": "lab"}}})
        member = {"data": {"attributes": {"user_name": "ann"}}}
        with pytest.raises(NotPermitted):
            ann.request("POST", "groups/lab/members", json=member)
        bob.request("POST", "groups/lab/members", json=member)
        shared = WireWorker(bob, "shared", group_name="lab")
        message = shared.take()
        assert message["uuid"] == mine
        assert [found["worker_id"] for found in ann.workers()] == ["shared"]
        shared.finish(message)
        assert ann.bundle(mine).state == "ready"


def test_a_bundle_that_no_worker_can_ever_run_says_so_until_one_comes(client: Client) -> None:
    uuid = run(client, request_cpus=32)
    assert "staged_status" not in client.bundle(uuid).metadata
    WireWorker(client).say()
    uuid_of_changes = client.changes(0).cursor
    assert "32 cpus" in client.bundle(uuid).metadata["staged_status"]
    assert client.changes(uuid_of_changes).changes == ()
    large = WireWorker(client, "large", cpus=64)
    large.take()
    assert "staged_status" not in client.bundle(uuid).metadata
