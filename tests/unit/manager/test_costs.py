from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from backends.base import Job, JobState
from manager.capacity import Room
from manager.cli import main
from manager.costs import Costs, PoolCosts, Run, share, used_seconds
from manager.ledger import Ledger, Outcome, Pool
from manager.money import Account, Terms

GIB = 1024**3
WORKER = Room(gpus=0, cpus=4, memory_bytes=8 * GIB)


def test_a_bundle_takes_the_largest_of_its_shares() -> None:
    assert share(Room(cpus=1, memory_bytes=GIB), WORKER) == 0.25
    assert share(Room(cpus=1, memory_bytes=6 * GIB), WORKER) == 0.75
    assert share(Room(cpus=8), WORKER) == 1.0
    assert share(Room(gpus=1), Room(gpus=2, cpus=8)) == 0.5


def test_time_is_shared_out_by_owner_and_the_rest_is_idle() -> None:
    runs = [
        Run("alice", Room(cpus=2), 0.0, 1000.0),
        Run("alice", Room(cpus=1), 500.0, 1500.0),
        Run("bob", Room(cpus=4), 1500.0, 9000.0),
    ]
    used = used_seconds(runs, WORKER, worker_seconds=3000.0, since=500.0, now=2000.0)
    assert used == {"alice": 250.0 + 250.0, "bob": 500.0}
    pool = PoolCosts("p", 3.6, 1, 3000.0, used, Account(Terms(3.6)))
    assert pool.idle_seconds == 2000.0
    costs = Costs(500.0, 2000.0, [pool])
    assert costs.by_owner() == pytest.approx({"alice": 0.5, "bob": 0.5})


def test_no_more_is_shared_out_than_there_was() -> None:
    runs = [Run("alice", Room(cpus=4), 0.0, 3000.0), Run("bob", Room(cpus=4), 0.0, 1000.0)]
    used = used_seconds(runs, WORKER, worker_seconds=1000.0, since=0.0, now=5000.0)
    assert used == pytest.approx({"alice": 750.0, "bob": 250.0})


def test_what_nobody_knows_is_not_called_idle() -> None:
    pool = PoolCosts("p", 1.0, 1, 100.0, None, Account(Terms(1.0)))
    assert pool.idle_seconds is None


def home_with_a_worker(path: Path) -> None:
    """One worker that ran for an hour, of a server that is away."""
    now = time.time()
    settings = {"price_per_hour": 2.0, "budget_per_day": 50.0, "cpus": 2, "gpus": 0,
                "memory_mb": 1024, "search": [], "worker_tag": None, "worker_tag_exclusive": False,
                "no_prefilter": False}  # fmt: skip
    with Ledger(path / "ledger.db", clock=lambda: now - 3700) as ledger:
        ledger.describe(Pool("campus", "local-process", "http://127.0.0.1:9", settings))
        [key] = ledger.intend("campus", 1)
        ledger.settle(key, Outcome.LAUNCHED, job_id="1")
        ledger.record_started({key: now - 3600})
        ledger.record_ends([Job("1", key, str(key), JobState.ENDED, ended=now, exit_code=0)])


def test_the_command_says_what_was_spent_and_that_it_does_not_know_for_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "token")
    home_with_a_worker(tmp_path)
    assert main(["costs", "--home", str(tmp_path), "--since", "-1d", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spent"] == pytest.approx(2.0, abs=0.01)
    [pool] = document["pools"]
    assert (pool["pool"], pool["workers"], pool["used_seconds"]) == ("campus", 1, None)
    assert [place["period"] for place in pool["windows"]] == ["hour", "day", "month"]
    assert pool["windows"][1]["budget"] == 50.0
    assert document["notes"][0].startswith("who used the workers is not known: ")
    assert main(["costs", "--home", str(tmp_path), "--since", "-1d"]) == 0
    shown = capsys.readouterr().out
    assert "not known" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_the_command_refuses_what_it_does_not_understand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["costs", "--home", str(tmp_path)]) == 2
    assert "ever kept a pool" in capsys.readouterr().err
    home_with_a_worker(tmp_path)
    assert main(["costs", "--home", str(tmp_path), "--since", "then"]) == 2
    assert "is no time" in capsys.readouterr().err
    assert main(["costs", "--home", str(tmp_path), "--pool", "q"]) == 2
