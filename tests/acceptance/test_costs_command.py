"""`worker-manager costs` beside a real server, manager and workers; budgets that hold launches."""

from __future__ import annotations

from managing import Managers, eventually


def test_what_workers_cost_is_told_by_owner_with_what_was_idle(managers: Managers) -> None:
    managers.stage(2, "sleep 1.2")
    manager = managers.start(
        "--pool", "p", "--min", "0", "--max", "1", "--cpus", "2", "--price-per-hour", "3600",
        "--worker-idle-seconds", "1", stand_ins=False,
    )  # fmt: skip

    def costs() -> dict[str, object]:
        return managers.json("costs", "--since", "-1d", "-o", "json")["pools"][0]  # type: ignore[no-any-return]

    eventually(lambda: "left with exit code 0" in managers.log(manager), "the worker's end")
    pool = costs()
    assert pool["workers"] == 1
    seconds = float(str(pool["worker_seconds"]))
    used = pool["used_seconds"]
    assert isinstance(used, dict)
    # Two at once took half of the worker each.
    assert 0.9 < sum(used.values()) < seconds
    assert abs(seconds - sum(used.values()) - float(str(pool["idle_seconds"]))) < 0.01
    assert seconds >= 60, "a minute at least is charged"
    assert list(used) == ["admin"]
    assert managers.json("costs", "-o", "json")["notes"] == []
    shown = managers.command("costs", "--since", "-1d").stdout
    assert "admin" in shown


def test_a_budget_bounds_the_workers_also_below_the_minimum_and_a_plan_says_so(
    managers: Managers,
) -> None:
    options = ("--pool", "p", "--min", "3", "--max", "9", "--price-per-hour", "1",
               "--budget-per-hour", "2.5")  # fmt: skip
    planned = managers.json("local-process", *options, "--plan", "-o", "json")
    assert planned["launch"] == {"p": 2}
    managers.stage(5)
    manager = managers.start(*options, "--once")
    assert manager.wait(timeout=60) == 0
    assert len(managers.workers()) == 2
    again = managers.command("local-process", *options, "--plan").stdout
    assert "yes budget" in again
    assert "of the 2.50 that p may cost" in again
    windows = managers.json("costs", "-o", "json")["pools"][0]["windows"]
    assert windows[0]["budget"] == 2.5
    assert windows[0]["forecast"] <= 2.5
