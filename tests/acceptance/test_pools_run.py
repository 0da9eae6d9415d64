"""`worker-manager run pools.toml`: a set of pools, as who operates it sees it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from managing import Managers, eventually


class PoolsFile:
    """A file of local-process pools whose workers are stand-ins, by name and maximum."""

    def __init__(self, managers: Managers) -> None:
        self.path = managers.directory / "pools.toml"
        self._managers = managers

    def write(self, first: str = "", default: str = "", **pools: int) -> None:
        """Whole or not at all, as editors do."""
        text = f"""
            sleep-time = 0.1
            metrics-port = 0
            {first}
            [defaults]
            min-workers = 0
            drain-grace-seconds = 0
            {default}
            worker-executable = "{self._managers.stand_in()}"
        """
        for name, most in pools.items():
            text += f'[[pools]]\nname = "{name}"\nbackend = "local-process"\nmax-workers = {most}\n'
        other = self.path.with_suffix(".new")
        other.write_text(text)
        os.replace(other, self.path)


@pytest.fixture
def file(managers: Managers) -> PoolsFile:
    return PoolsFile(managers)


def workers(managers: Managers) -> Counter[str]:
    """How many live, by pool."""
    return Counter(
        Path(process.info["cmdline"][process.info["cmdline"].index("--work-dir") + 1]).parts[-3]
        for process in managers.workers()
    )


def eventually_said(managers: Managers, manager: subprocess.Popen[bytes], words: str) -> None:
    eventually(lambda: words in managers.log(manager), f"{words!r} in the log")


def test_pools_are_filled_in_their_order_and_leave_when_they_are_taken_out_of_the_file(
    managers: Managers, file: PoolsFile
) -> None:
    file.write(one=1, two=1)
    managers.stage(3)
    assert managers.json("plan", str(file.path), "-o", "json")["launch"] == {"one": 1, "two": 1}
    manager = managers.run("run", str(file.path))
    eventually(lambda: workers(managers) == {"one": 1, "two": 1}, "a worker in each")

    file.write(three=1, one=1)
    eventually(lambda: workers(managers) == {"three": 1, "one": 1}, "three instead of two")
    eventually_said(managers, manager, "two: its last worker has gone, it is kept no more")
    kept = {
        pool["pool"]: pool["manager"] for pool in managers.json("status", "-o", "json")["pools"]
    }
    assert kept == {"one": manager.pid, "two": None, "three": manager.pid}

    file.write(one=0, three=1)
    eventually(lambda: workers(managers) == {"three": 1}, "none in one")
    assert managers.kill(manager, signal.SIGTERM) == 0
    assert workers(managers) == {"three": 1}

    file.write(one=0)  # while nobody looks
    manager = managers.run("run", str(file.path))
    eventually_said(managers, manager, "three: nobody keeps it, and 1 of its workers")
    assert "two: nobody" not in managers.log(manager)
    assert managers.kill(manager, signal.SIGTERM) == 0


def test_a_file_that_cannot_be_used_is_said_once_everywhere_and_keeps_the_pools_as_they_are(
    managers: Managers, file: PoolsFile
) -> None:
    file.write(one=1)
    managers.stage(3)
    manager = managers.run("run", str(file.path))
    eventually(lambda: workers(managers) == {"one": 1}, "a worker")
    address = re.search(r"metrics are at (\S+)", managers.log(manager))
    assert address is not None

    def is_good() -> bool:
        text = httpx.get(address[1], trust_env=False).text
        return "worker_manager_config_good 1.0" in text

    def problems() -> Any:
        [pool] = managers.json("status", "-o", "json")["pools"]
        return pool["file_problems"]

    assert is_good()
    assert problems() == []
    file.write(one=-1)
    said = f"{file.path}:13: pools[0].max-workers: -1 is less than 0: raise it"
    eventually_said(managers, manager, "the pools are kept as before")
    eventually(lambda: not is_good(), "the metric")
    assert problems() == [said]
    assert "kept as before its file changed" in managers.command("status").stdout
    ticks = len(managers.log(manager))
    manager.send_signal(signal.SIGHUP)  # who asks is told again, and nothing ends
    eventually(lambda: managers.log(manager).count(said) == 2, "it is said again")
    assert managers.log(manager)[:ticks].count(said) == 1

    file.write("server = 'http://127.0.0.1:9'", one=2)
    eventually_said(managers, manager, "server: cannot change while pools are kept")
    assert workers(managers) == {"one": 1}

    file.write(one=2)
    eventually(lambda: workers(managers) == {"one": 2}, "two workers")
    assert is_good()
    assert problems() == []
    assert managers.kill(manager, signal.SIGTERM) == 0


def test_other_options_are_for_new_workers_and_those_that_run_stay(
    managers: Managers, file: PoolsFile
) -> None:
    file.write(one=1)
    managers.stage(3)
    manager = managers.run("run", str(file.path))
    eventually(lambda: workers(managers) == {"one": 1}, "a worker")
    [old] = managers.workers()
    file.write("search = []", "worker-idle-seconds = 77", one=2)
    eventually(lambda: workers(managers) == {"one": 2}, "another")
    idle = {
        process.pid: process.info["cmdline"][process.info["cmdline"].index("--idle-seconds") + 1]
        for process in managers.workers()
    }
    assert idle.pop(old.pid) == "600"
    assert list(idle.values()) == ["77"]
    assert managers.kill(manager, signal.SIGTERM) == 0


def test_a_pool_that_another_manager_keeps_is_left_to_it_and_the_others_are_kept(
    managers: Managers, file: PoolsFile
) -> None:
    other = managers.start("--pool", "two", "--min", "0", "--sleep-time", "0.2")
    eventually_said(managers, other, "in the pool two")
    file.write(one=1)
    manager = managers.run("run", str(file.path))
    eventually_said(managers, manager, "in the pool one")
    file.write(two=0, one=2)
    eventually_said(managers, manager, f"two: another manager (process {other.pid}) keeps it")
    eventually_said(managers, manager, "has changed: keeping two, one")
    assert managers.kill(manager, signal.SIGTERM) == 0
    assert managers.kill(other, signal.SIGTERM) == 0


def test_once_looks_and_acts_and_ends(managers: Managers, file: PoolsFile) -> None:
    file.write("terminate-on-exit = true", one=1, two=1)
    managers.stage(2)
    done = managers.command("run", str(file.path), "--once")
    assert done.returncode == 0, done.stderr
    assert workers(managers) == {"one": 1, "two": 1}


def test_the_budget_of_all_pools_holds_launches_back(managers: Managers, file: PoolsFile) -> None:
    file.write("[budget]\nper-hour = 1", "price-per-hour = 10", one=1, two=1)
    managers.stage(2)
    plan = managers.json("plan", str(file.path), "-o", "json")
    assert plan["launch"] == {"one": 0, "two": 0}
    done = managers.command("run", str(file.path), "--once")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("of the 1.00 that all pools may cost", done.stderr)) == 2
    shown = managers.json("costs", "-o", "json")
    assert shown["sets"][0]["pools"] == ["one", "two"]
    assert shown["windows"][0]["budget"] == 1.0
    assert workers(managers) == {}
