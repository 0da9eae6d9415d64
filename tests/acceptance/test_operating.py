"""A manager as who operates it sees it: metrics, health, log lines, systemd, its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from managing import PATIENCE_SECONDS, Managers, eventually
from prometheus_client.parser import text_string_to_metric_families
from serving import Server


def address(managers: Managers, manager: subprocess.Popen[bytes]) -> str:
    """Where a manager serves its metrics."""

    def said() -> re.Match[str] | None:
        return re.search(r"metrics are at (http://\S+)/metrics", managers.log(manager))

    match: re.Match[str] = eventually(said, "the address of the metrics")
    return match[1]


def get(url: str) -> httpx.Response:
    with httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client:
        return client.get(url)


def metric(url: str, name: str, **labels: str) -> float | None:
    """The value of a sample that carries these labels, the first of them."""
    answer = get(f"{url}/metrics")
    assert answer.status_code == 200
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == name and sample.labels.items() >= labels.items():
                return sample.value
    return None


def test_a_manager_serves_what_it_counts_and_how_it_is(managers: Managers) -> None:
    managers.stage(3)
    manager = managers.start("--min", "0", "--max", "2", "--metrics-port", "0")
    url = address(managers, manager)
    eventually(lambda: get(f"{url}/readyz").status_code == 200, "the first look")
    eventually(lambda: metric(url, "worker_manager_launches_total") == 2, "two launches")
    assert get(f"{url}/healthz").text == "alive\n"
    assert metric(url, "worker_manager_staged_bundles", pool="local-process") == 3
    assert metric(url, "worker_manager_decision_reason", code="at_maximum") == 1
    assert metric(url, "worker_manager_backend_call_seconds_count", operation="launch") == 1
    assert metric(url, "process_resident_memory_bytes")
    assert get(f"{url}/").status_code == 404
    assert managers.kill(manager, signal.SIGTERM) == 0


def test_the_time_to_registration_is_that_of_real_workers(managers: Managers) -> None:
    managers.stage(1)
    manager = managers.start(
        *("--min", "0", "--max", "1", "--sleep-time", "0.2", "--metrics-port", "0"),
        stand_ins=False,
    )
    url = address(managers, manager)
    name = "worker_manager_registration_seconds"
    eventually(lambda: metric(url, f"{name}_count") == 1, "a registration")
    seconds = metric(url, f"{name}_sum")
    assert seconds is not None
    assert 0 < seconds < PATIENCE_SECONDS


def test_a_manager_without_a_server_is_alive_and_not_ready(
    managers: Managers, server: Server
) -> None:
    server.stop(signal.SIGKILL)
    manager = managers.start("--metrics-port", "0", "--sleep-time", "0.1")
    url = address(managers, manager)
    name = "worker_manager_tick_failures_total"
    eventually(lambda: (metric(url, name) or 0) >= 1, "a tick that failed")
    assert get(f"{url}/healthz").status_code == 200
    refused = get(f"{url}/readyz")
    assert (refused.status_code, refused.text) == (503, "queue and jobs have not been read yet\n")


def test_a_port_that_is_taken_is_one_line_and_exit_1(managers: Managers) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = managers.command("local-process", "--metrics-port", str(port))
    assert done.returncode == 1
    assert f"metrics cannot be served at 127.0.0.1 port {port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_whoever_connects_and_says_nothing_keeps_nobody_waiting(managers: Managers) -> None:
    manager = managers.start("--min", "0", "--metrics-port", "0")
    url = address(managers, manager)
    port = int(url.rsplit(":", 1)[1])
    with closing(socket.create_connection(("127.0.0.1", port))):
        assert get(f"{url}/healthz").status_code == 200
        assert managers.kill(manager, signal.SIGTERM) == 0


def test_a_log_of_json_is_json_to_the_last_line(managers: Managers) -> None:
    manager = managers.start("--min", "1", "--max", "1", "--log-format", "json")
    eventually(lambda: "keeping" in managers.log(manager))
    eventually(managers.workers)
    assert managers.kill(manager, signal.SIGTERM) == 0
    lines = [json.loads(line) for line in managers.log(manager).splitlines()]
    assert lines[0]["message"].startswith("keeping 1 to 1 workers")
    assert {"time", "level", "message"} == set(lines[0])
    assert lines[-1]["message"] == "leaving: the workers stay"
    failed = managers.command("local-process", "--log-format", "json", "--password-file", "/none")
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert json.loads(line)["level"] == "error"


def test_a_manager_that_terminates_on_exit_ends_its_own_workers_and_no_others(
    managers: Managers,
) -> None:
    managers.start("--pool", "other", "--min", "1", "--max", "1")
    (kept,) = eventually(managers.workers)
    manager = managers.start("--min", "2", "--max", "2", "--terminate-on-exit")
    eventually(lambda: len(managers.workers()) == 3, "three workers")
    assert managers.kill(manager, signal.SIGTERM) == 0
    assert "2 workers asked to end" in managers.log(manager)
    eventually(lambda: [worker.pid for worker in managers.workers()] == [kept.pid], "their end")


def hear(listener: socket.socket, wanted: str) -> list[str]:
    """What was said up to the datagram that begins so."""
    said = []
    while True:
        said.append(listener.recv(4096).decode())
        if said[-1].startswith(wanted):
            return said


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, str]]:
    """A socket that systemd could listen at, and its name."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        listener.bind("")  # the kernel chooses an abstract name
        yield listener, listener.getsockname().decode().replace("\0", "@", 1)


def test_systemd_hears_of_the_beginning_the_life_and_the_end(
    managers: Managers, server: Server, listener: tuple[socket.socket, str]
) -> None:
    systemd, server.env["NOTIFY_SOCKET"] = listener
    server.env["WATCHDOG_USEC"] = "100000"
    manager = managers.start("--min", "1", "--max", "1")
    assert hear(systemd, "READY=1")[-1] == "READY=1\nSTATUS=keeping the pool local-process"
    hear(systemd, "WATCHDOG=1")
    (worker,) = eventually(managers.workers)
    assert "NOTIFY_SOCKET" not in worker.environ()
    second = managers.start("--min", "1")
    hear(systemd, "READY=1\nSTATUS=waiting")
    assert managers.kill(second, signal.SIGTERM) == 0
    assert managers.kill(manager, signal.SIGTERM) == 0
    hear(systemd, "STOPPING=1")


STUCK = """
import sys, threading
from backends import local_process
from manager import pulse, watchdog

pulse.TICK_SECONDS = 1.0
watchdog.LOOK_SECONDS = 0.1
whole = local_process.LocalProcess.list_jobs

def list_jobs(self):
    jobs = whole(self)
    if any(job.state == "active" for job in jobs):
        threading.Event().wait()  # a call that forgot its time-out
    return jobs

local_process.LocalProcess.list_jobs = list_jobs
from manager.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_manager_that_is_stuck_ends_with_a_failure_and_leaves_its_workers(
    managers: Managers, server: Server
) -> None:
    words = ["local-process", "--min", "1", "--max", "1", "--sleep-time", "0.2"]
    done = subprocess.run(
        [sys.executable, "-c", STUCK, *words, "--worker-executable", str(managers.stand_in())],
        env=server.env,
        cwd=managers.directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "stuck for " in last
    assert "list_jobs (<string>:" in last
    assert len(eventually(managers.workers)) == 1


def test_several_pools_of_one_process_are_told_apart_in_its_metrics(managers: Managers) -> None:
    file = managers.directory / "pools.toml"
    file.write_text(
        f"""
        sleep-time = 0.1
        metrics-port = 0
        [budget]
        per-day = 100.0
        [defaults]
        min-workers = 1
        max-workers = 1
        worker-executable = "{managers.stand_in()}"
        [[pools]]
        name = "cheap"
        backend = "local-process"
        price-per-hour = 0.5
        [[pools]]
        name = "dear"
        backend = "local-process"
        price-per-hour = 2.0
        budget-per-hour = 50.0
        """
    )
    manager = managers.run("run", str(file))
    url = address(managers, manager)
    for pool, price in (("cheap", 0.5), ("dear", 2.0)):
        eventually(lambda pool=pool: metric(url, "worker_manager_launches_total", pool=pool) == 1)
        eventually(
            lambda pool=pool, price=price: (
                metric(url, "worker_manager_cost_per_hour", pool=pool) == price
            ),
            "what they cost",
        )
        assert metric(url, "worker_manager_max_workers", pool=pool) == 1
        assert metric(url, "worker_manager_lease_held", pool=pool) == 1
        assert (metric(url, "worker_manager_tick_seconds_count", pool=pool) or 0) > 0
    assert metric(url, "worker_manager_whole_budget", period="day") == 100
    assert metric(url, "worker_manager_budget", pool="dear", period="hour") == 50
    assert metric(url, "worker_manager_config_good") == 1
    file.write_text(file.read_text().replace("per-day = 100", "per-month = 900"))
    eventually(
        lambda: metric(url, "worker_manager_whole_budget", period="month") == 900, "another budget"
    )
    assert metric(url, "worker_manager_whole_budget", period="day") is None, "it was taken away"
    file.write_text("[[pools]]\nmax-workers = 'many'\n")
    eventually(lambda: metric(url, "worker_manager_config_good") == 0, "a bad file")
    assert get(f"{url}/healthz").status_code == 200
    assert managers.kill(manager, signal.SIGTERM) == 0
