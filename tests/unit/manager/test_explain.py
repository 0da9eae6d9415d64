from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from pool_fakes import GIB, NOW

from backends.base import EndCause, Job, JobState, LaunchKey
from bundles.errors import UsageError
from bundles.model import Bundle
from bundles.replies import Change
from manager.capacity import UNBOUNDED, Room
from manager.commands.explain import moment_of
from manager.explain import (
    PoolView,
    exit_sentence,
    explain_bundle,
    explain_moment,
    explain_worker,
)
from manager.history import Entry
from manager.ledger import Launch, Outcome
from manager.policy import Decision, PoolConfig, Reason
from manager.queue import QueueConfig

KEY = LaunchKey("p", 1, "0123abcd")
STAGED = Decision(1, reasons=(Reason("staged", True, "3 bundles staged"),))
IDLE = Decision(0, reasons=(Reason("nothing_staged", True, "no bundles staged"),))
SMALL = QueueConfig(cpus=2, gpus=0, memory_bytes=4 * GIB)


def entry(at: float, decision: Decision | None = IDLE, **more: Any) -> Entry:
    return Entry(at, "p", decision, **more)


def said(explanation: Any) -> str:
    return "\n".join(explanation.sentences)


# A moment


def test_a_moment_is_explained_by_the_decision_that_held_then() -> None:
    entries = [entry(NOW), entry(NOW + 10, STAGED), entry(NOW + 20)]
    found = explain_moment("p", entries, NOW + 12, manager=None, is_now=False)
    assert "launch 1 worker: 3 bundles staged" in said(found)
    assert "yes, staged: 3 bundles staged" in said(found)


def test_ticks_that_went_unwritten_because_they_were_alike_are_told() -> None:
    entries = [entry(NOW), entry(NOW + 300, repeats=59)]
    found = explain_moment("p", entries, NOW + 100, manager=None, is_now=False)
    assert "59 ticks more until" in said(found)


def test_a_tick_that_failed_says_why_nothing_was_decided() -> None:
    entries = [entry(NOW, None, error="Unreachable: no answer from http://s")]
    found = explain_moment("p", entries, NOW, manager=1, is_now=True)
    assert "because Unreachable: no answer from http://s" in said(found)


def test_refusals_are_counted_beside_what_was_launched() -> None:
    results = (
        {"launch": "p-1-x", "job": "j"},
        {"launch": "p-2-x", "error": "QuotaExceeded: full"},
        {"launch": "p-3-x", "error": "QuotaExceeded: full"},
        {"end": "k", "error": "it runs"},
    )
    found = said(
        explain_moment("p", [entry(NOW, STAGED, results=results)], NOW, manager=1, is_now=True)
    )
    assert "launched: 1 worker" in found
    assert "not launched: 2 workers: QuotaExceeded: full" in found
    assert "not withdrawn: 1 worker: it runs" in found


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [([], "its journal is empty"), ([entry(NOW + 5)], "its journal begins at")],
)
def test_a_moment_of_which_nothing_is_known_is_said_to_be_unknown(
    entries: list[Entry], sentence: str
) -> None:
    assert sentence in said(explain_moment("p", entries, NOW, manager=None, is_now=False))


def test_silence_in_the_journal_is_told() -> None:
    found = explain_moment("p", [entry(NOW)], NOW + 7200, manager=None, is_now=True)
    assert "nothing was written down in the 2h00m after that" in said(found)
    assert "no manager keeps the pool now" in said(found)
    soon = explain_moment("p", [entry(NOW)], NOW + 60, manager=7, is_now=True)
    assert "nothing was written" not in said(soon)
    assert "process 7 keeps the pool now" in said(soon)


# A worker


def test_a_worker_is_told_with_its_end_and_the_decision_that_launched_it() -> None:
    launch = Launch(KEY, NOW, Outcome.LAUNCHED, "j", None, NOW + 60, 3, "")
    entries = [entry(NOW - 9), entry(NOW, STAGED, results=({"launch": str(KEY), "job": "j"},))]
    found = said(explain_worker(launch, None, entries, NOW + 120))
    assert found.startswith("it ended 1m00s ago")
    assert "accepted it as job j" in found
    assert "exit code 3 (the server does not take its credentials)" in found
    assert "launch 1 worker: 3 bundles staged" in found


@pytest.mark.parametrize(
    ("launch", "sentence"),
    [
        (Launch(KEY, NOW), "not known yet"),
        (Launch(KEY, NOW, Outcome.REFUSED, error="no such queue"), "never launched: no such queue"),
        (Launch(KEY, NOW, Outcome.UNDONE), "never launched: its manager ended"),
        (Launch(KEY, NOW, Outcome.LAUNCHED, "j"), "launched 5.0s ago and has not ended"),
    ],
)
def test_every_fate_of_a_launch_has_its_sentence(launch: Launch, sentence: str) -> None:
    found = said(explain_worker(launch, None, [], NOW + 5, unlisted="no answer"))
    assert sentence in found
    assert "in the journal no more" in found


def test_a_living_worker_is_told_as_its_service_lists_it() -> None:
    launch = Launch(KEY, NOW, Outcome.LAUNCHED, "j")
    job = Job("j", KEY, str(KEY), JobState.PENDING, NOW, why="Resources")
    assert ": Resources" in said(explain_worker(launch, job, [], NOW))
    ended = Job("j", KEY, str(KEY), JobState.ENDED, NOW, NOW, NOW + 1, 137, "OOM", EndCause.FAILED)
    found = said(explain_worker(launch, ended, [], NOW + 9))
    assert "failed: exit code 137, killed by SIGKILL (OOM)" in found


def test_the_life_of_a_worker_that_never_registered_is_told_with_its_last_words() -> None:
    launch = Launch(
        KEY,
        NOW,
        Outcome.LAUNCHED,
        "j",
        settled=NOW + 1,
        started=NOW + 2,
        given_up=NOW + 603,
        last_words="looking for the server\nno route to host",
    )
    explanation = explain_worker(launch, None, [], NOW + 700)
    assert "its job began to run" in said(explanation)
    assert "given up" in said(explanation)
    assert "never registered; it did nothing, and counts towards quarantine" in said(explanation)
    assert "  no route to host" in explanation.sentences
    assert explanation.facts["failure"] == {"cause": "never registered", "is_wasted": True}
    assert explanation.facts["stages"] == {"intended": NOW, "pending": NOW + 1}


@pytest.mark.parametrize("code", [*range(11), 126, 127, 130, 255])
def test_every_exit_code_has_a_meaning(code: int) -> None:
    assert len(exit_sentence(code)) > len(f"exit code {code}")


# A bundle


def bundle(state: str = "staged", **metadata: Any) -> Bundle:
    return Bundle("0x" + "1" * 32, "run", state, metadata=metadata)


def view(queue: QueueConfig = SMALL, *, selected: bool = True) -> PoolView:
    return PoolView("p", queue, selected, 7, entry(NOW))


@pytest.mark.parametrize(
    ("metadata", "queue", "sentence"),
    [
        ({"request_cpus": 3}, SMALL, "asks for 3 of cpus, and a worker has 2"),
        ({"request_gpus": 1}, SMALL, "asks for 1 of gpus, and a worker has 0"),
        ({"request_memory": "5g"}, SMALL, "of memory, and a worker has"),
        (
            {"request_time": "3h"},
            QueueConfig(2, 0, 4 * GIB, lifetime_seconds=7080.0),
            "asks for 3h00m of time, and a new worker has 1h58m",
        ),
        ({"request_queue": "tag=big"}, SMALL, "queued for the tag 'big'"),
        ({"request_cpus": "many"}, SMALL, "cannot be read"),
        (
            {},
            QueueConfig(2, 0, 4 * GIB, tag="big", tag_exclusive=True),
            "run bundles for the tag 'big' only",
        ),
    ],
)
def test_a_pool_that_cannot_hold_a_bundle_says_why(
    metadata: dict[str, Any], queue: QueueConfig, sentence: str
) -> None:
    found = explain_bundle(bundle(**metadata), [], {}, [view(queue)])
    assert "the pool p cannot hold it" in said(found)
    assert sentence in said(found)
    assert found.facts["pools"][0]["can_hold"] is False


def test_a_bundle_that_asks_for_more_than_new_workers_had_is_told_so() -> None:
    shape = replace(SMALL, offered=Room(0, 2, 4 * GIB, 50 * GIB, UNBOUNDED)).shape
    last = replace(entry(NOW), config=PoolConfig(shape))
    found = said(explain_bundle(bundle(request_disk="100g"), [], {}, [replace(view(), last=last)]))
    assert "cannot hold it: it asks for 100g of disk, and no new worker had more than 50g" in found


def test_a_bundle_that_a_search_leaves_out_is_told_so() -> None:
    queue = QueueConfig(2, 0, 4 * GIB, search=("name=x",))
    assert "its search does not select it: name=x" in said(
        explain_bundle(bundle(), [], {}, [view(queue, selected=False)])
    )
    assert "its own user's bundles only" in said(
        explain_bundle(bundle(), [], {}, [view(selected=False)])
    )


def test_a_staged_bundle_that_fits_gets_the_last_decision_and_its_reasons() -> None:
    found = said(explain_bundle(bundle(), [], {}, [view()]))
    assert "the pool p could hold it" in found
    assert "no bundles staged" in found


def test_a_staged_bundle_without_any_pool_is_told_so() -> None:
    assert "nobody launches for it here" in said(explain_bundle(bundle(), [], {}, []))


def test_a_created_bundle_waits_for_those_of_its_parents_that_are_not_ready() -> None:
    found = said(
        explain_bundle(bundle("created"), [], {"0xa": "ready", "0xb": "running", "0xc": ""}, [])
    )
    assert "it waits for 0xb, which is running" in found
    assert "it waits for 0xc, which is not there" in found
    assert "0xa" not in found


def test_a_bundle_that_failed_says_how() -> None:
    found = said(
        explain_bundle(bundle("failed", failure_message="no space", exitcode=3), [], {}, [])
    )
    assert found == "it failed: no space (exit code 3)"


def test_the_life_of_a_bundle_names_its_workers_and_why_it_was_staged_again() -> None:
    changes = [
        Change("u", "", "staged", NOW),
        Change("u", "staged", "starting", NOW + 1, 1, str(KEY)),
        Change("u", "starting", "staged", NOW + 2, 1, None, "its worker left"),
    ]
    found = said(explain_bundle(bundle("running"), changes, {}, []))
    assert f"staged → starting, worker {KEY}" in found
    assert "starting → staged (its worker left)" in found


# What is asked


def test_times_are_iso_or_so_long_ago() -> None:
    now = time.time()
    assert moment_of("now", now) == now
    assert moment_of("-10m", now) == now - 600
    assert moment_of("-1.5h", now) == now - 5400
    assert moment_of("2026-01-31T12:00:00+00:00", now) == 1769860800
    assert moment_of("2026-01-31", now) is not None
    assert moment_of(str(KEY), now) is None
    assert moment_of("0x" + "1" * 32, now) is None


@pytest.mark.parametrize("text", ["-10", "--bogus", "2999-01-01"])
def test_a_time_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        moment_of(text, time.time())
