"""The small modules of the worker that only compute: limits, devices, messages, records."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bundles.errors import UsageError
from bundles.model import Resources
from worker import records
from worker.backoff import Backoff
from worker.devices import Devices, Share, assign, offered_cpus, offered_gpus
from worker.limits import disk_exceeded, memory_exceeded, time_exceeded
from worker.messages import (
    KillMessage,
    RunMessage,
    Unreadable,
    message_id,
    read_message,
)
from worker.reads import summarize
from worker.stages import Fate, Run, Stage

UUID = "0x" + "a" * 32
OTHER = "0x" + "b" * 32

RESOURCES = {"cpus": 1, "gpus": 0, "memory": 1024, "disk": 0, "time": 0}


def test_limits_are_passed_only_beyond_them_and_zero_is_none() -> None:
    resources = Resources(memory_bytes=1024**2, disk_bytes=1024, time_seconds=60)
    assert memory_exceeded(resources, 1024**2) is None
    assert memory_exceeded(resources, 2 * 1024**2) == "Memory limit 1m exceeded. (It used 2m)"
    assert disk_exceeded(resources, 1024) is None
    assert disk_exceeded(resources, 2048) == "Disk limit 1kb exceeded. (It used 2k)"
    assert time_exceeded(resources, 59.9) is None
    assert time_exceeded(resources, 61) == (
        "Time limit exceeded. (Container uptime 1m01s > time limit 1m00s)"
    )
    unlimited = Resources(memory_bytes=0)
    assert memory_exceeded(unlimited, 2**60) is None
    assert disk_exceeded(unlimited, 2**60) is None
    assert time_exceeded(unlimited, 1e9) is None


def test_cpus_and_gpus_are_never_given_twice() -> None:
    devices = Devices(cpus=(0, 1, 2, 3), gpus=("0", "1"))
    first = assign(devices, [], 2, 1)
    assert first == Share((0, 1), ("0",))
    second = assign(devices, [first], 2, 1)
    assert second == Share((2, 3), ("1",))
    assert assign(devices, [first, second], 1, 0) is None
    assert assign(devices, [first, second], 0, 0) == Share()
    assert assign(devices, [first], 1, 2) is None


def test_runs_are_pinned_only_to_cpus_that_are_known_to_be_this_workers() -> None:
    present = sorted(os.sched_getaffinity(0))
    assert offered_cpus("ALL", 1, "w")[1] == (len(present) == 1)
    whole, pinned = offered_cpus("ALL", None, "w")
    assert (sorted(whole), pinned) == (present, True)
    more, pinned = offered_cpus("ALL", len(present) + 3, "w")
    assert (len(more), pinned) == (len(present) + 3, False)
    assert offered_cpus(str(present[0]), None, "w") == ((present[0],), True)
    assert len(offered_cpus("ALL", None, "w", quota=1.9)[0]) == 1
    assert len(offered_cpus("ALL", None, "w", quota=0.2)[0]) == 1
    assert len(offered_cpus("ALL", None, "w", quota=1000.0)[0]) == len(present)


def test_more_cpus_than_a_set_names_are_refused_for_runs_are_kept_on_it() -> None:
    present = sorted(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match="--cpus 2: --cpuset"):
        offered_cpus(str(present[0]), 2, "w")


@pytest.mark.parametrize("cpuset", ["", "x", "1-", "-", "99999", "0-99999999999"])
def test_a_set_of_cpus_that_is_none_or_not_here_is_refused(cpuset: str) -> None:
    with pytest.raises(UsageError):
        offered_cpus(cpuset, None, "w")


def test_no_gpus_are_offered_when_none_are_wanted_and_unknown_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert offered_gpus("NONE") == offered_gpus("") == ()
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '0, GPU-a'; echo '1, GPU-b'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert offered_gpus("ALL") == ("0", "1")
    assert offered_gpus("GPU-b,0") == ("1", "0")
    assert offered_gpus("ALL", ["GPU-b"]) == ("1",)
    assert offered_gpus("ALL", []) == ()
    with pytest.raises(UsageError, match="no gpu '0'"):
        offered_gpus("0", ["1"])
    with pytest.raises(UsageError, match="no gpu '7'"):
        offered_gpus("7")


def test_a_driver_that_does_not_answer_is_told_from_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert offered_gpus("ALL") == ()
    assert "no gpus are offered" in caplog.text


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run(
        uuid=UUID,
        claim=3,
        bundle={"uuid": UUID, "command": "true"},
        resources=Resources(cpus=2, time_seconds=1.5),
        accepted=1.0,
        stage=Stage.RUNNING,
        fate=Fate.RESTAGED,
        process={"pid": 7},
        cpus=(1, 2),
        gpus=("0",),
        times={"PREPARING": (1.0, 2.0), "RUNNING": (2.0, None)},
        seconds=(1.0, 2.0, 3.0),
    )
    records.save(tmp_path, run)
    assert records.load(tmp_path / run.key) == run
    records.save(tmp_path, replace(run, claim=None))
    assert records.load(tmp_path / UUID).claim is None


def test_a_record_cut_at_any_byte_is_torn_and_never_something_else(tmp_path: Path) -> None:
    run = Run(UUID, 3, {"command": "true"}, Resources(), accepted=1.0)
    records.save(tmp_path, run)
    path = tmp_path / run.key / "run.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(records.TornRecord):
            records.load(tmp_path / run.key)
    path.write_bytes(whole.replace(b'"claim":3', b'"claim":4'))
    with pytest.raises(records.TornRecord):
        records.load(tmp_path / run.key)
    path.unlink()
    with pytest.raises(records.TornRecord):
        records.load(tmp_path / run.key)


def run_message(**bundle: object) -> dict[str, object]:
    return {
        "type": "run",
        "id": "m1",
        "claim": 2,
        "bundle": {"uuid": UUID, "command": "true", "dependencies": [], **bundle},
        "resources": RESOURCES,
    }


def test_messages_are_read_with_what_codalab_leaves_out() -> None:
    message = read_message(run_message())
    assert isinstance(message, RunMessage)
    assert (message.id, message.claim, message.uuid, message.fault) == ("m1", 2, UUID, None)
    assert message.resources.memory_bytes == 1024
    assert read_message({"type": "kill", "uuid": UUID}) == KillMessage(
        None, None, UUID, "Kill requested"
    )


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"type": "run"},
        {"type": "run", "bundle": {"uuid": "../x"}, "resources": RESOURCES},
        {"type": "run", "bundle": {"uuid": UUID}, "resources": {}},
        {"type": "kill"},
        {"type": "kill", "uuid": 7},
        {"type": "read", "uuid": UUID},
        {"type": "netcat", "uuid": UUID, "socket_id": 1, "port": "x"},
        {"type": "dance", "uuid": UUID},
    ],
)
def test_a_message_that_makes_no_sense_is_named_so(document: object) -> None:
    with pytest.raises(Unreadable):
        read_message(document)


def test_the_id_of_a_message_is_known_even_if_nothing_else_is() -> None:
    assert message_id({"id": "m1", "type": "dance"}) == "m1"
    assert message_id({"id": 7}) is message_id(None) is None


@pytest.mark.parametrize(
    ("dependencies", "fault"),
    [
        ([("../x", OTHER)], "leaves the bundle"),
        ([("/x", OTHER)], "leaves the bundle"),
        ([("x", OTHER), ("./x", OTHER)], "Two dependencies"),
        ([("x", "../../etc")], "is no uuid"),
        ([("x", OTHER), (".", OTHER), ("a/b", OTHER)], None),
    ],
)
def test_dependencies_that_cannot_be_are_a_fault_of_the_bundle(
    dependencies: list[tuple[str, str]], fault: str | None
) -> None:
    message = read_message(
        run_message(
            dependencies=[{"child_path": path, "parent_uuid": uuid} for path, uuid in dependencies]
        )
    )
    assert isinstance(message, RunMessage)
    if fault is None:
        assert message.fault is None
    else:
        assert message.fault is not None
        assert fault in message.fault


@pytest.mark.parametrize("path", [f"../../../{OTHER}/contents/blob/", "a/../../..", "/etc", "a\0"])
def test_a_dependency_leads_to_nothing_but_its_bundle(path: str) -> None:
    dependency = {"child_path": "x", "parent_uuid": OTHER, "parent_path": path}
    message = read_message(run_message(dependencies=[dependency]))
    assert isinstance(message, RunMessage)
    assert "leaves the bundle" in (message.fault or "")


def test_waits_double_up_to_a_bound_and_begin_again() -> None:
    backoff = Backoff(1.0, 5.0, chance=lambda low, high: 1.0)
    assert [backoff.next_seconds() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_seconds() == 1.0


def summary(text: bytes, head: int, tail: int, line_bytes: int = 100) -> bytes:
    return summarize(
        io.BytesIO(text),
        head_lines=head,
        tail_lines=tail,
        line_bytes=line_bytes,
        truncation="...\n",
    )


def test_a_summary_is_the_whole_file_if_it_is_short() -> None:
    assert summary(b"1\n2\n3", 2, 1) == b"1\n2\n3\n"
    assert summary(b"", 2, 1) == b""


def test_a_summary_leaves_out_the_middle() -> None:
    text = b"".join(b"%d\n" % number for number in range(1, 101))
    assert summary(text, 2, 1) == b"1\n2\n...\n100\n"
    assert summary(text, 2, 0) == b"1\n2\n"
    assert summary(text, 0, 2) == b"99\n100\n"
    assert summary(text, 2, 2, line_bytes=4) == b"1\n2\n...\n99\n100\n"
    with pytest.raises(UsageError):
        summary(text, 0, 0)
