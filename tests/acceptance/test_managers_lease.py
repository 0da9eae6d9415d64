"""Two managers of one pool in two homes, as on two hosts, at one server of bundles."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from managing import Managers, eventually
from serving import Server

POOL = ("--pool", "shared", "--sleep-time", "0.2")


class OtherHome(Server):
    """Another home, whose owner works with the server of the first."""

    def __init__(self, first: Server) -> None:
        directory = first.directory / "other"
        directory.mkdir()
        super().__init__(directory)
        self.url = first.url
        self.env |= {
            "WORKER_MANAGER_SERVER": first.url,
            "WORKER_MANAGER_TOKEN": first.home.token_path.read_text().strip(),
        }
        self.home.create()

    def share_jobs(self, first: Server) -> None:
        """Both homes see the same service, and launch with the same mark."""
        (self.home.path / "owner").write_text((first.home.path / "owner").read_text())
        (self.home.path / "jobs").symlink_to(first.home.path / "jobs")


@pytest.fixture
def first(server: Server) -> Iterator[Managers]:
    made = Managers(server)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def second(first: Managers) -> Iterator[Managers]:
    made = Managers(OtherHome(first.server))
    try:
        yield made
    finally:
        made.close()


def journal(managers: Managers) -> list[dict[str, Any]]:
    path: Path = managers.server.home.path / "journal" / "shared.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def has_decided(managers: Managers) -> bool:
    return any(line["decision"] for line in journal(managers))


def is_waiting(managers: Managers, manager: Popen[bytes]) -> bool:
    return "another manager keeps a pool: shared is held by" in managers.log(manager)


def test_when_a_manager_is_killed_one_of_another_home_takes_over_and_launches_nothing_twice(
    first: Managers, second: Managers
) -> None:
    killed = first.start(*POOL, "--min", "2", "--max", "2")
    workers = eventually(lambda: len(first.workers()) == 2 and first.workers())
    assert isinstance(second.server, OtherHome)
    second.server.share_jobs(first.server)
    waiting = second.start(*POOL, "--min", "2", "--max", "2")
    eventually(lambda: is_waiting(second, waiting))
    assert not has_decided(second)
    first.kill(killed)
    eventually(lambda: has_decided(second), "the second to take over")
    assert "this manager keeps shared now" in second.log(waiting)
    assert {worker.pid for worker in first.workers()} == {worker.pid for worker in workers}
    workers[0].terminate()
    eventually(second.workers, "one of its own")  # its view of the place where jobs are is another
    assert second.kill(waiting, signal.SIGTERM) == 0


def test_a_manager_that_was_stopped_and_wakes_up_after_a_take_over_launches_nothing(
    first: Managers, second: Managers
) -> None:
    stopped = first.start(*POOL, "--min", "1", "--max", "1")
    (worker,) = eventually(first.workers)
    stopped.send_signal(signal.SIGSTOP)
    successor = second.start(*POOL, "--min", "1", "--max", "1")
    eventually(second.workers, "the second to take over")
    worker.terminate()  # what it would launch another for
    worker.wait(30)
    stopped.send_signal(signal.SIGCONT)
    eventually(lambda: is_waiting(first, stopped))
    assert first.workers() == []
    # Given back, it changes hands at once.
    assert second.kill(successor, signal.SIGTERM) == 0
    eventually(first.workers, "the first to keep the pool again")
    assert first.kill(stopped, signal.SIGTERM) == 0


def test_pools_of_other_names_are_kept_and_one_who_waits_ends_when_it_is_told_to(
    first: Managers, second: Managers
) -> None:
    keeping = first.start(*POOL, "--min", "1", "--max", "1")
    eventually(first.workers)
    second.start("--pool", "another", "--min", "1", "--max", "1")
    eventually(second.workers)
    waiting = second.start(*POOL, "--terminate-on-exit")
    eventually(lambda: is_waiting(second, waiting))
    assert second.kill(waiting, signal.SIGTERM) == 0
    assert (len(first.workers()), len(second.workers())) == (1, 1)
    # One that is killed and started again need not wait for what was its own.
    first.kill(keeping)
    lines = len(journal(first))
    first.start(*POOL, "--min", "1", "--max", "1")
    eventually(lambda: has_decided(first) and len(journal(first)) > lines)
