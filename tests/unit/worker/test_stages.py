from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles.model import Resources
from worker.stages import (
    CleanedUp,
    Effect,
    Event,
    Exited,
    Fate,
    Finalized,
    GiveBack,
    HeldBack,
    KillRequested,
    LimitExceeded,
    Lost,
    NotStarted,
    NotUploaded,
    Revoked,
    Run,
    Stage,
    Started,
    Uploaded,
    signal_message,
    step,
)

EVENTS: list[Event] = [
    Started({"pid": 7}, (0,), ()),
    NotStarted("no such file"),
    HeldBack(),
    Exited(0),
    Exited(3),
    Exited(137),
    Lost(),
    LimitExceeded("Time limit exceeded."),
    KillRequested(),
    GiveBack(),
    Revoked(),
    CleanedUp(),
    CleanedUp("Disk limit exceeded."),
    Uploaded(),
    NotUploaded("it is too large"),
    Finalized(),
]

FORWARD = {
    Stage.PREPARING: {Stage.RUNNING, Stage.CLEANING_UP},
    Stage.RUNNING: {Stage.CLEANING_UP, Stage.PREPARING},
    Stage.CLEANING_UP: {
        Stage.UPLOADING_RESULTS,
        Stage.FINALIZING,
        Stage.RESTAGED,
        Stage.FINISHED,
    },
    Stage.UPLOADING_RESULTS: {Stage.FINALIZING, Stage.RESTAGED, Stage.FINISHED},
    Stage.FINALIZING: {Stage.FINISHED},
    Stage.RESTAGED: {Stage.FINISHED},
    Stage.FINISHED: set(),
}


def new_run(**changes: object) -> Run:
    run = Run("0x" + "a" * 32, 1, {"command": "true"}, Resources(), accepted=100.0)
    return replace(run, **changes)  # type: ignore[arg-type]


def follow(run: Run, *events: Event) -> tuple[Run, list[Effect]]:
    effects: list[Effect] = []
    for number, event in enumerate(events):
        run, more = step(run, event, 101.0 + number)
        effects += more
    return run, effects


STARTED = Started({"pid": 7})


def test_a_run_that_goes_well_goes_through_every_stage() -> None:
    run, effects = follow(
        new_run(), STARTED, Exited(0, (1.0, 0.5, 0.25)), CleanedUp(), Uploaded(), Finalized()
    )
    assert run.stage is Stage.FINISHED
    assert (run.exitcode, run.failure_message, run.seconds) == (0, None, (1.0, 0.5, 0.25))
    assert effects == [
        Effect.MENTION,
        Effect.CLEAN_UP,
        Effect.MENTION,
        Effect.UPLOAD,
        Effect.REPORT,
        Effect.REMOVE,
    ]
    assert run.times == {
        "PREPARING": (100.0, 101.0),
        "RUNNING": (101.0, 102.0),
        "CLEANING_UP": (102.0, 103.0),
        "UPLOADING_RESULTS": (103.0, 104.0),
        "FINALIZING": (104.0, 105.0),
        "FINISHED": (105.0, None),
    }


def test_a_run_that_cannot_start_has_a_reason_and_nothing_to_upload() -> None:
    run, effects = follow(new_run(), NotStarted("no such file"), CleanedUp())
    assert (run.stage, run.failure_message) == (Stage.FINALIZING, "no such file")
    assert Effect.UPLOAD not in effects
    assert Effect.CANCEL in effects


@pytest.mark.parametrize("event", [KillRequested("Kill requested"), LimitExceeded("too much")])
def test_what_ends_a_running_command_is_the_reason_whatever_it_exits_with(event: Event) -> None:
    run, effects = follow(new_run(), STARTED, event)
    assert (run.stage, run.stopping) == (Stage.RUNNING, True)
    assert effects[-1] is Effect.STOP
    run, _ = follow(run, Exited(143), CleanedUp(), Uploaded())
    assert run.failure_message in ("Kill requested", "too much")
    assert run.exitcode == 143


def test_the_first_reason_for_an_end_is_the_one_that_counts() -> None:
    run, effects = follow(new_run(), STARTED, LimitExceeded("too much"), KillRequested())
    assert run.failure_message == "too much"
    assert effects.count(Effect.STOP) == 1


def test_a_run_that_is_given_back_is_reported_so_until_it_is_taken() -> None:
    for events in (
        (GiveBack(), CleanedUp()),
        (STARTED, GiveBack(), Exited(143), CleanedUp()),
        (STARTED, Exited(0), GiveBack(), CleanedUp()),
        (STARTED, Exited(0), CleanedUp(), GiveBack()),
    ):
        run, effects = follow(new_run(), *events)
        assert (run.stage, effects[-1]) == (Stage.RESTAGED, Effect.REPORT)
        run, effects = follow(run, Revoked())
        assert (run.stage, effects) == (Stage.FINISHED, [Effect.REMOVE])


def test_results_that_are_being_committed_are_not_given_back() -> None:
    run, _ = follow(new_run(), STARTED, Exited(0), CleanedUp(), Uploaded())
    assert follow(run, GiveBack()) == (run, [])


def test_a_revoked_run_never_uploads() -> None:
    for before in ((), (STARTED,), (STARTED, Exited(0)), (STARTED, Exited(0), CleanedUp())):
        run, _ = follow(new_run(), *before)
        run, effects = follow(run, Revoked(), Exited(143), CleanedUp())
        assert run.stage is Stage.FINISHED
        assert Effect.UPLOAD not in effects


def test_a_kill_ends_an_upload_and_is_the_reason() -> None:
    run, _ = follow(new_run(), STARTED, Exited(0), CleanedUp())
    run, effects = follow(run, KillRequested())
    assert (run.stage, run.failure_message) == (Stage.FINALIZING, "Kill requested")
    assert effects == [Effect.CANCEL, Effect.REPORT]


def test_a_command_whose_end_nobody_saw_is_run_anew_unless_it_was_to_end() -> None:
    run, _ = follow(new_run(), STARTED, Lost(), CleanedUp())
    assert run.stage is Stage.RESTAGED
    run, _ = follow(new_run(), STARTED, KillRequested(), Lost(), CleanedUp(), Uploaded())
    assert (run.stage, run.failure_message) == (Stage.FINALIZING, "Kill requested")


def test_a_command_that_was_never_let_go_is_prepared_again() -> None:
    run, effects = follow(new_run(), STARTED, HeldBack())
    assert (run.stage, run.process, run.cpus) == (Stage.PREPARING, None, ())
    assert effects == [Effect.MENTION]


def test_the_end_by_a_signal_is_said_in_words() -> None:
    assert signal_message(137) == "Killed by signal SIGKILL (9)"
    assert signal_message(139) == "Killed by signal SIGSEGV (11)"
    assert [signal_message(code) for code in (0, 1, 127, 128, 255)] == [None] * 5


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("fate", list(Fate))
def test_every_event_is_fit_for_every_stage(stage: Stage, event: Event, fate: Fate) -> None:
    run = new_run(stage=stage, fate=fate, process={"pid": 7})
    after, effects = step(run, event, 200.0)
    assert after.stage is stage or after.stage in FORWARD[stage]
    if after.stage is Stage.FINISHED and stage is not Stage.FINISHED:
        assert effects[-1] is Effect.REMOVE
    if fate is not Fate.KEPT and stage in (Stage.PREPARING, Stage.RUNNING, Stage.CLEANING_UP):
        assert Effect.UPLOAD not in effects
    again, _ = step(after, event, 201.0)
    assert again.stage is after.stage or again.stage in FORWARD[after.stage]


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_whatever_happens_a_run_ends_and_is_removed_once(events: list[Event]) -> None:
    run, effects = follow(new_run(), *events)
    # What would come by itself: the process ends, threads report, the server answers.
    tail: list[Event] = [Revoked(), Exited(143), CleanedUp(), Uploaded(), Finalized()]
    run, more = follow(run, *tail)
    assert run.stage is Stage.FINISHED
    assert [*effects, *more].count(Effect.REMOVE) == 1


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_once_revoked_nothing_is_uploaded_any_more(events: list[Event]) -> None:
    run, _ = follow(new_run(), STARTED, Revoked())
    _, effects = follow(run, *events)
    assert Effect.UPLOAD not in effects


def test_no_two_orders_of_the_same_news_disagree_on_who_gets_the_results() -> None:
    news: list[Event] = [KillRequested(), LimitExceeded("too much"), Exited(1)]
    for order in itertools.permutations(news):
        run, _ = follow(new_run(), STARTED, *order, CleanedUp(), Uploaded())
        assert (run.stage, run.fate) == (Stage.FINALIZING, Fate.KEPT)
