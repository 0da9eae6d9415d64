from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends.base import Job, JobState
from manager.capacity import Room
from manager.cli import main
from manager.costs import Costs, PoolCosts, Run, share, used_seconds
from manager.ledger import Ledger, Outcome, Pool
from manager.money import Account, Budget, PoolSet, Terms

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


def describe(path: Path, pools: Sequence[str], together: PoolSet | None) -> None:
    settings = {"price_per_hour": 2.0, "cpus": 2, "gpus": 0, "memory_mb": 1024}
    with Ledger(path / "ledger.db") as ledger:
        for name in pools:
            kept = settings | (together.to_settings() if together else {})
            ledger.describe(Pool(name, "local-process", "http://127.0.0.1:9", kept))


def budgets(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What the day may cost by the command, by who is said to have that budget."""
    assert main(["costs", "--home", str(path), "-o", "json", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {"+".join(one["pools"]): one["windows"][1]["budget"] for one in document["sets"]}
    return {"all": document["windows"][1]["budget"], **found}


def test_what_pools_may_cost_together_is_shown_for_the_set_that_a_file_made_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = PoolSet(("campus", "spot"), Budget(per_day=50.0))
    describe(tmp_path, both.pools, both)
    assert budgets(tmp_path, capsys) == {"all": 50.0, "campus+spot": 50.0}
    assert budgets(tmp_path, capsys, "--pool", "spot") == {"all": None}
    assert main(["costs", "--home", str(tmp_path)]) == 0
    assert "50.00" in capsys.readouterr().out
    describe(tmp_path, ["alone"], None)
    assert budgets(tmp_path, capsys) == {"all": None, "campus+spot": 50.0}
    assert main(["costs", "--home", str(tmp_path)]) == 0
    assert "campus + spot  hour" in capsys.readouterr().out
    # Taken out of the file, with less for the other: what it has cost is spent.
    one = PoolSet(("campus",), Budget(per_day=20.0))
    describe(tmp_path, one.pools, one)
    assert budgets(tmp_path, capsys) == {"all": None, "campus+spot": 20.0}
    assert budgets(tmp_path, capsys, "--pool", "campus") == {"all": None}
    with Ledger(tmp_path / "ledger.db") as ledger:
        [key] = ledger.intend("spot", 1)
        ledger.settle(key, Outcome.LAUNCHED, job_id="1")
    assert budgets(tmp_path, capsys) == {"all": None, "campus": 20.0}, "it has not drained"
    describe(tmp_path, ["campus"], None)
    assert budgets(tmp_path, capsys) == {"all": None}


def test_what_the_set_may_cost_is_nothing_about_a_worker() -> None:
    settings = PoolSet(("campus",), Budget(per_day=20.0)).to_settings()
    assert Pool("campus", "b", "s", settings).way() == Pool("campus", "b", "s", {}).way()


def test_the_command_refuses_what_it_does_not_understand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["costs", "--home", str(tmp_path)]) == 2
    assert "ever kept a pool" in capsys.readouterr().err
    home_with_a_worker(tmp_path)
    assert main(["costs", "--home", str(tmp_path), "--since", "then"]) == 2
    assert "is no time" in capsys.readouterr().err
    assert main(["costs", "--home", str(tmp_path), "--pool", "q"]) == 2
