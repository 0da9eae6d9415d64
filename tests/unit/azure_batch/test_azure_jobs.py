"""What a task of Azure Batch is to the manager: state, cause, times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from azure.batch.models import BatchPool, BatchTask

from backends.azure_batch.jobs import job_of
from backends.azure_batch.mark import key_of, mark_of
from backends.azure_batch.pools import PoolNews
from backends.base import (
    Context,
    EndCause,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    OutOfCapacity,
    QuotaExceeded,
)

KEY = LaunchKey("p", 1, "0badcafe")
CREATED, STARTED, ENDED = (f"2026-11-21T10:0{minute}:00Z" for minute in range(3))


def job(*, asked: bool = False, run: bool = True, **document: Any) -> Job:
    document.setdefault("stateTransitionTime", ENDED)
    node = {"nodeInfo": {"nodeId": "n"}} if run else {}
    task = BatchTask({"id": str(KEY), "creationTime": CREATED, **node, **document})
    return job_of(task, KEY, asked_to_end=asked, waiting="waits for a node")


def ended(exit_code: int | None = None, code: str = "", category: str = "usererror") -> Any:
    execution: dict[str, Any] = {"startTime": STARTED, "endTime": ENDED, "exitCode": exit_code}
    if code:
        execution["failureInfo"] = {"category": category, "code": code, "message": "said so"}
    return {"state": "completed", "executionInfo": execution}


@pytest.mark.parametrize(
    ("state", "meaning"),
    [
        ("active", JobState.PENDING),
        ("preparing", JobState.PENDING),
        ("running", JobState.ACTIVE),
        ("completed", JobState.ENDED),
        ("a state of next year", JobState.ACTIVE),
    ],
)
def test_a_task_s_state_is_a_job_s(state: str, meaning: JobState) -> None:
    assert job(state=state).state is meaning


def test_a_task_that_no_node_has_says_what_it_waits_for() -> None:
    assert job(state="active", run=False).why == "waits for a node"
    assert job(state="preparing").why == "its node prepares it"


def test_a_task_whose_node_was_taken_back_waits_again_and_says_so() -> None:
    again = job(state="active", previousState="running", executionInfo={"startTime": STARTED})
    assert again.state is JobState.PENDING
    assert again.started is None
    assert "preempted or lost" in again.why


@pytest.mark.parametrize(
    ("document", "asked", "cause"),
    [
        (ended(0), False, EndCause.FINISHED),
        (ended(0), True, EndCause.FINISHED),
        (ended(3, "FailureExitCode"), False, EndCause.FAILED),
        (ended(3, "FailureExitCode"), True, EndCause.KILLED_BY_US),
        (ended(137, "FailureExitCode"), False, EndCause.KILLED_BY_OTHERS),
        (ended(None, "TaskEnded"), True, EndCause.KILLED_BY_US),
        (ended(None, "TaskEnded"), False, EndCause.KILLED_BY_OTHERS),
        (ended(0, "TaskEnded"), False, EndCause.KILLED_BY_OTHERS),
        (ended(None, "ContainerInvalidImage"), False, EndCause.FAILED),
        (ended(None, "OtherError", "servererror"), False, EndCause.UNKNOWN),
        ({"state": "completed"}, False, EndCause.UNKNOWN),
    ],
)
def test_why_a_task_ended_is_told_by_code(
    document: dict[str, Any], asked: bool, cause: EndCause
) -> None:
    assert job(asked=asked, **document).cause is cause


def test_an_end_has_its_times_and_the_service_s_words() -> None:
    found = job(**ended(3, "FailureExitCode"))
    assert (found.created, found.started, found.ended) == (1795255200.0, 1795255260.0, 1795255320.0)
    assert (found.exit_code, found.why) == (3, "FailureExitCode: said so")


def test_a_task_that_was_ended_before_a_node_had_it_never_started() -> None:
    assert job(run=False, **ended(None, "TaskEnded")).started is None


def test_only_the_whole_mark_makes_a_task_ours() -> None:
    ours = Context(Path("/nowhere"), "0123456789abcdef", "p")
    mark = mark_of(ours, KEY)
    assert key_of(ours, str(KEY), mark) == KEY
    for task_id, name in [
        (str(KEY), None),
        (str(KEY), ""),
        (str(KEY), mark.upper()),
        (str(KEY), mark + " "),
        (str(KEY).upper(), mark),
        ("p-2-0badcafe", mark),
        ("p-by-hand", mark),
        (None, mark),
    ]:
        assert key_of(ours, task_id, name) is None
    for other in (
        Context(Path("/nowhere"), "0123456789abcdee", "p"),
        Context(Path("/nowhere"), "0123456789abcdef", "P"),
    ):
        assert key_of(other, str(KEY), mark) is None


# Pools


def pool(**document: Any) -> PoolNews:
    return PoolNews.read(
        BatchPool({"id": "nodes", "state": "active", "allocationState": "steady", **document})
    )


def lacking(code: str, nodes: int = 0) -> PoolNews:
    return pool(
        resizeErrors=[{"code": code, "message": "no more"}],
        currentDedicatedNodes=nodes,
        targetDedicatedNodes=4,
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("AllocationFailed", OutOfCapacity),
        ("AllocationTimedout", OutOfCapacity),
        ("AccountCoreQuotaReached", QuotaExceeded),
        ("AccountLowPriorityCoreQuotaReached", QuotaExceeded),
    ],
)
def test_a_pool_that_has_no_node_and_gets_none_takes_no_worker(
    code: str, error: type[Exception]
) -> None:
    assert isinstance(lacking(code).refusal(1), error)
    assert lacking(code, nodes=1).refusal(1) is None


def test_a_pool_that_could_grow_takes_workers_though_it_has_no_node() -> None:
    assert pool(currentDedicatedNodes=0).refusal(1) is None
    assert lacking("ResizeStopped").refusal(1) is None


def test_a_worker_that_takes_more_slots_than_a_node_has_would_wait_for_ever() -> None:
    assert pool(taskSlotsPerNode=4).refusal(4) is None
    assert isinstance(pool(taskSlotsPerNode=4).refusal(5), Invalid)
    assert isinstance(pool().refusal(2), Invalid)


def test_a_pool_that_is_being_deleted_takes_no_worker() -> None:
    assert isinstance(pool(state="deleting").refusal(1), Invalid)


def test_what_a_task_waits_for_has_the_pool_s_numbers_and_troubles() -> None:
    waiting = lacking("AllocationFailed").waiting
    assert "nodes" in waiting
    assert "0 of 4 nodes; AllocationFailed: no more" in waiting
    assert "resizing" in pool(allocationState="resizing").waiting
