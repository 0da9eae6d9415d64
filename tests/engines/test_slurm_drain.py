"""`worker-manager slurm` beside a real server and a real cluster: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from managing import Managers, eventually
from serving import Server
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.engine("slurm")

BUNDLES = 60


@pytest.fixture
def server(tmp_path: Path, slurm_cluster: SlurmCluster) -> Iterator[Server]:
    running = Server(tmp_path)
    running.env |= slurm_cluster.reach
    running.start("--worker-timeout-seconds", "5")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    try:
        yield slurm_cluster
    finally:
        slurm_cluster.clear()


@contextmanager
def manager(server: Server, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as an operator starts it; it must end well when it is asked to. No two workers
    find room on one node."""
    log = server.directory / "manager.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "manager", "slurm", "--min", "0", "--max", "3"),
                *("--sleep-time", "0.5", "--worker-idle-seconds", "3", "--memory-mb", "2500"),
                *options,
            ],
            env=server.env,
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def jobs(cluster: SlurmCluster, state: str) -> list[tuple[str, str]]:
    """Ids and nodes of the jobs in a state, oldest first."""
    text = cluster.command("squeue", "-h", "-r", "-t", state, "-S", "V", "-o", "%i %N")
    return [(line.split()[0], line.split()[1]) for line in text.splitlines() if line.split()[1:]]


def test_sixty_bundles_drain_though_nodes_fail(server: Server, cluster: SlurmCluster) -> None:
    """One node is declared lost and its worker killed. Another is cut off: its worker lives on,
    beside the one that takes its place."""
    managers = Managers(server)
    with server.client() as client, manager(server):
        uuids = managers.stage(BUNDLES, command="sleep 0.2; echo hi >> said")

        def states() -> Counter[str]:
            found = client.search([f"uuid={','.join(uuids)}", ".limit=100"])
            return Counter(bundle.state for bundle in found)

        workers = eventually(client.workers, "the first worker")
        assert 9 * 24 * 3600 < workers[0]["seconds_left"] < 10 * 24 * 3600  # of --time 10-0
        eventually(lambda: states()["ready"] >= BUNDLES // 4, "a quarter of the bundles")
        (lost, node), *_ = jobs(cluster, "running")
        cluster.fail_node(node)
        eventually(lambda: states()["ready"] >= BUNDLES // 2, "half of the bundles")
        cut_off, other = next(job for job in jobs(cluster, "running") if job[1] != node)
        cluster.kill_node(other)
        cluster.fail_node(other)
        eventually(lambda: states() == {"ready": BUNDLES}, "all of the bundles")
        cluster.start_node(other)
        eventually(lambda: not jobs(cluster, "running"), "the workers leave")
        for uuid in uuids:
            with client.download(uuid, "said") as said:
                assert b"".join(said.chunks()) == b"hi\n"
        (pool,) = managers.json("status", "--output", "json")["pools"]
    ended = {job["id"]: job["why"] for job in pool["jobs"]}
    assert {job["state"] for job in pool["jobs"]} == {"ended"}
    assert ended[lost].startswith("its node failed")
    assert ended[cut_off].startswith("its node failed")
    home = server.home.path
    secrets = [path for path in home.glob("jobs/**/secrets") if path.stat().st_mode & 0o077]
    assert secrets == []


def test_an_ordinary_user_keeps_a_pool(server: Server, cluster: SlurmCluster) -> None:
    """Without any right that others have not, but to read the Python that the tests run with."""
    home = cluster.directory / "nobody"
    home.mkdir()
    stand_in = home / "worker"
    stand_in.write_text('#!/bin/sh\necho "I am $(id -un), $*"\n')
    stand_in.chmod(0o755)
    os.chown(home, 65534, 65534)
    done = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
            *(sys.executable, "-m", "manager", "slurm", "--home", str(home), "--once"),
            *("--server", server.url, "--min", "2", "--worker-executable", str(stand_in)),
        ],
        env=server.env | {"WORKER_MANAGER_TOKEN": server.home.token_path.read_text().strip()},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logs = eventually(lambda: list(home.glob("jobs/*/*/1.exit")), "both workers leave")
    log = logs[0].with_name("1.log")
    assert log.read_text().startswith("I am nobody, --server ")
    assert server.home.token_path.read_text().strip() not in log.read_text()


def test_a_manager_whose_workers_fail_gives_up(server: Server, cluster: SlurmCluster) -> None:
    done = Managers(server).command(
        *("slurm", "--min", "2", "--sleep-time", "0.2", "--exit-after-num-failed", "1"),
        *("--worker-executable", "/bin/false"),
    )
    assert done.returncode == 1
    assert "2 workers failed, 1 may" in done.stderr
    assert "Traceback" not in done.stderr
