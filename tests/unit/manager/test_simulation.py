from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles.errors import UsageError
from manager.simulation.arrivals import Burst, Constant, Diurnal
from manager.simulation.chance import LogNormal, draw
from manager.simulation.drawing import draw as draw_picture
from manager.simulation.report import Report
from manager.simulation.scenario import load, parse
from manager.simulation.world import simulate

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"
HOURS = 3600.0

POOL = """
[[pools]]
name = "cloud"
max-workers = 20
cpus = 4
memory-mb = 8192
price-per-hour = 3.6
worker-idle-seconds = 60
start-seconds = 30
registration-seconds = 5
"""
BUNDLES = """
[[bundles]]
owner = "alice"
arrivals = { burst = 8 }
run-seconds = 100
"""


def run(text: str) -> Report:
    return simulate(parse(text, Path("scenario.toml")))


# What comes of it


def test_eight_bundles_of_a_cpu_take_two_workers_of_four_and_are_charged_by_the_second() -> None:
    report = run(POOL + BUNDLES)
    pool = report.whole
    assert (report.came, report.done, report.left) == (8, 8, 0)
    assert (pool.launched, pool.workers, pool.peak, pool.ran_nothing) == (2, 2, 2, 0)
    # 5 s until they come, 100 s of work, 60 s until they leave.
    assert pool.worker_seconds == pytest.approx(2 * 165)
    assert pool.idle_seconds == pytest.approx(2 * 60)
    assert pool.cost == pytest.approx(2 * 165 * 3.6 / 3600)
    assert report.waiting_seconds["p99"] == pytest.approx(35, abs=1)


def test_the_same_scenario_gives_the_same_report() -> None:
    text = POOL + BUNDLES.replace("100", "{ exponential = 100 }").replace(
        "burst = 8", "poisson-per-hour = 200"
    )
    text = "duration-seconds = 7200\n" + text
    assert run(text) == run(text)
    assert run("seed = 2\n" + text) != run(text)


def test_nothing_is_launched_above_the_maximum_and_every_bundle_is_done_in_the_end() -> None:
    report = run(POOL.replace("max-workers = 20", "max-workers = 2") + BUNDLES.replace("8", "50"))
    assert (report.done, report.whole.peak) == (50, 2)


def test_bundles_that_no_worker_could_ever_hold_are_left_and_launch_nothing() -> None:
    report = run("duration-seconds = 3600\nafter-seconds = 0\n" + POOL + BUNDLES + "cpus = 5\n")
    assert (report.done, report.left, report.whole.launched) == (0, 8, 0)


def test_what_was_killed_while_it_waited_is_not_run_and_its_workers_are_withdrawn() -> None:
    pool = POOL.replace("start-seconds = 30", "start-seconds = 100")
    report = run(pool + BUNDLES + "taken-back-seconds = 10\n")
    assert (report.taken_back, report.done) == (8, 0)
    assert (report.whole.launched, report.whole.withdrawn) == (2, 2)
    assert report.whole.cost == 0


def test_when_the_first_pool_has_no_machine_the_next_one_takes_over_after_the_patience() -> None:
    first = POOL.replace("cloud", "campus").replace("3.6", "0") + (
        "stock-outs = [[0, 3600]]\npatience-seconds = 120\n"
    )
    report = run(first + POOL + BUNDLES)
    assert report.done == 8
    assert report.pools["campus"].workers == 0
    assert report.pools["cloud"].workers == 2
    assert 120 <= report.waiting_seconds["p50"] <= 200


def test_a_service_that_refuses_is_asked_less_and_less_and_the_next_pool_takes_over_at_once() -> (
    None
):
    first = POOL.replace("cloud", "campus") + "stock-outs = [[0, 3600]]\nrefuses = true\n"
    report = run(first + POOL + BUNDLES)
    assert report.pools["cloud"].workers == 2
    assert report.waiting_seconds["most"] < 60
    assert report.pools["campus"].refused <= 4


def test_bundles_of_preempted_workers_are_run_again() -> None:
    report = run(POOL + "preemptions-per-hour = 20\n" + BUNDLES)
    assert report.whole.preempted > 0
    assert report.restarts > 0
    assert report.done == 8


def test_a_bundle_that_takes_its_worker_with_it_fails_after_so_many_and_the_others_are_done() -> (
    None
):
    poison = "\n[[bundles]]\narrivals = { burst = 1 }\nrun-seconds = 10\nkills-worker = true\n"
    report = run(POOL + BUNDLES + poison)
    assert (report.done, report.failed, report.whole.died) == (8, 1, 3)


def test_workers_that_never_come_to_work_are_few_however_many_are_wanted() -> None:
    report = run("after-seconds = 3600\nduration-seconds = 3600\n" + POOL + "bad-starts = 1.0\n"
                 + BUNDLES.replace("8", "80"))  # fmt: skip
    assert report.done == 0
    assert 1 <= report.whole.died <= 25, "they are tried with growing pauses"


def test_owners_take_turns() -> None:
    text = POOL.replace("max-workers = 20", "max-workers = 1").replace("cpus = 4", "cpus = 1")
    text += BUNDLES.replace("burst = 8", "burst = 100").replace("100\n", "10\n")
    text += '\n[[bundles]]\nowner = "bob"\narrivals = { burst = 1, from-seconds = 60 }\n'
    text += "run-seconds = 10\n"
    report = run("duration-seconds = 400\nafter-seconds = 0\n" + text)
    assert report.done < 101
    assert report.left == report.came - report.done


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    maximum=st.integers(1, 30),
    per_hour=st.one_of(st.none(), st.floats(1.0, 40.0)),
    preemptions=st.sampled_from([0.0, 2.0]),
    failures=st.sampled_from([0.0, 0.2]),
    capacity=st.one_of(st.none(), st.integers(1, 10)),
)
def test_whatever_happens_no_maximum_and_no_budget_of_an_hour_is_passed_and_all_is_done(
    seed: int,
    maximum: int,
    per_hour: float | None,
    preemptions: float,
    failures: float,
    capacity: int | None,
) -> None:
    pool = POOL.replace("max-workers = 20", f"max-workers = {maximum}")
    pool += f"preemptions-per-hour = {preemptions}\nlaunch-failures = {failures}\n"
    pool += f"capacity = {capacity}\n" if capacity else ""
    text = f"seed = {seed}\nduration-seconds = 3600\nafter-seconds = 864000\n"
    text += f"[budget]\nper-hour = {max(per_hour, 3.7)}\n" if per_hour else ""
    bundles = "\n[[bundles]]\narrivals = { poisson-per-hour = 60 }\n"
    bundles += "run-seconds = { lognormal = 300, sigma = 0.5 }\n"
    report = run(text + pool + bundles)
    assert report.left == 0
    assert report.whole.peak <= maximum
    if per_hour:
        by_hour = {0: 0.0}
        for moment in report.moments:
            by_hour[int(moment.seconds // HOURS)] = moment.cost
        spent = [by_hour[hour] for hour in sorted(by_hour)]
        # The moments of a plot are 15 s apart: so much may fall into the next hour's first.
        slack = report.whole.peak * 3.6 / HOURS * 75
        assert all(
            after - before <= max(per_hour, 3.7) + slack
            for before, after in zip([0.0, *spent], spent, strict=False)
        )


# Arrivals and durations


def test_arrivals_come_as_often_as_they_should() -> None:
    dice = Random(1)
    constant = Constant.model_validate({"constant-per-hour": 60, "until-seconds": 3600})
    assert [when for when, _ in constant.arrivals(dice)] == [60.0 * n for n in range(60)]
    burst = Burst.model_validate({"burst": 5, "every-seconds": 100, "until-seconds": 250})
    assert list(burst.arrivals(dice)) == [(0.0, 5), (100.0, 5), (200.0, 5)]
    daily = Diurnal.model_validate({"diurnal-per-hour": [0, 1000], "until-seconds": 86400})
    times = [when for when, _ in daily.arrivals(dice)]
    assert 11_500 < len(times) < 12_500
    noon = sum(36_000 < when < 50_400 for when in times)
    night = sum(when < 7_200 or when > 79_200 for when in times)
    assert noon > 10 * night


def test_a_lognormal_duration_has_the_median_that_it_says() -> None:
    dice = Random(1)
    form = LogNormal.model_validate({"lognormal": 300.0, "sigma": 1.0})
    values = sorted(draw(form, dice) for _ in range(2001))
    assert 270 < values[1000] < 330


def test_arrivals_are_read_from_a_table_and_from_a_journal_beside_the_scenario(
    tmp_path: Path,
) -> None:
    (tmp_path / "day.csv").write_text("seconds,number\n0,3\n100,2\n")
    text = POOL + BUNDLES.replace("burst = 8", 'csv = "day.csv"')
    (tmp_path / "scenario.toml").write_text(text)
    assert simulate(load(tmp_path / "scenario.toml")).done == 5
    seen = {"demand": [[0, 1, 0, 0, "", 4]], "unfit": 0, "pending": 0, "active": 0, "ending": 0,
            "free": [], "withdrawable": [], "last_launch": None, "surplus_since": None,
            "held_until": 0, "hold_reason": "", "is_on_probation": False}  # fmt: skip
    line = {"time": 5.0, "pool": "p", "decision": None, "snapshot": seen}
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "scenario.toml").write_text(text.replace('csv = "day.csv"', 'journal = "p.jsonl"'))
    assert simulate(load(tmp_path / "scenario.toml")).done == 4


# What is wrong with a file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[[pools]", "scenario.toml: this is not TOML"),
        ("seed = 1\nspeed = 2\n" + POOL + BUNDLES, "scenario.toml:2: speed: there is no such key"),
        (POOL, "scenario.toml:1: bundles: it is missing"),
        (POOL + "min-workers = 30\n" + BUNDLES, "pools[0]: min-workers 30 is more than"),
        (POOL + POOL + BUNDLES, "two pools have the name 'cloud'"),
        (POOL + BUNDLES.replace("burst = 8", "burst = 0"), "bundles[0].arrivals.burst: "),
        (POOL + BUNDLES.replace("burst = 8", "often = 8"), "arrivals: give one of constant-per-"),
        (POOL + BUNDLES.replace("100", "{ mean = 3 }"), "run-seconds: give seconds, or {"),
        (POOL + BUNDLES.replace("100", "-1"), "scenario.toml:15: bundles[0].run-seconds: "),
        (POOL + BUNDLES.replace("burst = 8", 'csv = "none.csv"'), "none.csv cannot be read"),
        (POOL.replace("3.6", "0") + "budget-per-day = 1\n" + BUNDLES, "needs --price-per-hour"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_with_its_line_and_key(
    text: str, line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(text)
    assert line in str(caught.value)


def test_a_table_of_arrivals_is_refused_with_the_line_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("0,3\nsoon,2\n")
    text = POOL + BUNDLES.replace("burst = 8", 'csv = "day.csv"')
    with pytest.raises(UsageError, match=r"day\.csv:2: 'soon,2' is not seconds and a number"):
        parse(text, tmp_path / "scenario.toml")


# The command


def test_the_command_prints_a_report_and_draws_a_picture(tmp_path: Path) -> None:
    scenario, picture = tmp_path / "s.toml", tmp_path / "s.svg"
    scenario.write_text('description = "<eight & more>"\n' + POOL + BUNDLES)
    command = [sys.executable, "-m", "manager", "simulate", str(scenario)]
    found = subprocess.run(
        [*command, "--plot", str(picture), "-o", "json"], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout)["bundles"]["done"] == 8
    root = ET.parse(picture).getroot()
    texts = [element.text for element in root.iter() if element.text]
    assert {"<eight & more>", "staged", "cloud: machines", "spent"} <= set(texts)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "8 bundles in" in shown
    assert "workers launched" in shown
    assert max(map(len, shown.splitlines())) <= 80
    refused = subprocess.run(
        [*command, "--plot", "s.gif"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "ends in .svg" in refused.stderr


def test_a_picture_of_nothing_at_all_is_a_picture() -> None:
    text = POOL + BUNDLES.replace("burst = 8", "burst = 8, from-seconds = 90000")
    ET.fromstring(draw_picture(run(text)))


# Reference traces, as docs/performance.md has them


@pytest.mark.parametrize("name", sorted(path.stem for path in TRACES.glob("*.toml")))
def test_of_each_reference_trace_few_workers_run_nothing_and_few_minutes_are_idle(
    name: str,
) -> None:
    """With the idle time-outs of the files: 600 s, and 60 or 120 s where bundles come in bursts."""
    report = simulate(load(TRACES / f"{name}.toml"))
    whole = report.whole
    assert report.left == 0
    assert whole.ran_nothing_fraction < 0.01
    assert whole.idle_fraction <= 0.05


def test_on_a_queue_that_is_seen_late_there_is_at_most_one_worker_more_than_on_a_fresh_one() -> (
    None
):
    scenario = load(TRACES / "stale-queue.toml")
    stale = simulate(scenario)
    oracle = simulate(scenario.model_copy(update={"queue_age_seconds": 0.0, "is_told": True}))
    assert stale.done == oracle.done
    assert abs(stale.whole.peak - oracle.whole.peak) <= 1


def test_a_device_is_no_scenario() -> None:
    with pytest.raises(UsageError, match="/dev/zero is not a file"):
        load(Path("/dev/zero"))
