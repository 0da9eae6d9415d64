"""A pool of containers whose image goes away, and whose image has no worker in it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from docker_engine import IMAGE, DockerEngine
from managing import Managers, eventually
from serving import Server

from manager.health import WASTED_ALLOWED
from manager.ledger import Launch, Ledger

pytestmark = [pytest.mark.engine("docker"), pytest.mark.timeout(300)]

TAG = "localhost/short-lived:1"


@pytest.fixture
def engine(docker_engine: DockerEngine) -> Iterator[DockerEngine]:
    docker_engine.command("tag", IMAGE, TAG)
    yield docker_engine
    left = docker_engine.command("ps", "--all", "--quiet").split()
    if left:
        docker_engine.command("rm", "--force", *left)


@contextmanager
def manager(server: Server, engine: DockerEngine) -> Iterator[Managers]:
    server.env |= engine.env
    managers = Managers(server)
    options = ("--image", TAG, "--min", "0", "--max", "20", "--sleep-time", "0.3")
    process = managers.run("local-docker", *options)
    try:
        eventually(lambda: "keeping" in managers.log(process), "the manager to begin")
        yield managers
        assert managers.kill(process, signal.SIGTERM) == 0, managers.log(process)
    finally:
        managers.close()


def launches(server: Server) -> list[Launch]:
    ledger = Ledger.read_only(server.home.path / "ledger.db")
    assert ledger is not None
    with ledger:
        return ledger.recent("local-docker", 100)


def held(server: Server) -> str:
    """Why nothing is launched; "" when something may be."""
    journal = server.home.path / "journal" / "local-docker.jsonl"
    if not journal.exists():
        return ""
    snapshot = json.loads(journal.read_text().splitlines()[-1])["snapshot"]
    return str(snapshot["hold_reason"]) if snapshot["is_on_probation"] else ""


def test_an_image_that_is_gone_wastes_nothing_and_is_named(
    server: Server, engine: DockerEngine
) -> None:
    with manager(server, engine) as managers:
        engine.command("rmi", TAG)
        managers.stage(20)
        why = eventually(lambda: held(server), "the hold")
        assert "(image)" in why
        assert "No such image" in why
        assert engine.command("ps", "--all", "--quiet").split() == []
        assert {launch.job_id for launch in launches(server)} == {None}


def test_an_image_without_a_worker_wastes_three_containers_at_most(
    server: Server, engine: DockerEngine
) -> None:
    with manager(server, engine) as managers:
        managers.stage(20)
        eventually(lambda: held(server), "the hold")
    assert len(launches(server)) <= WASTED_ALLOWED
