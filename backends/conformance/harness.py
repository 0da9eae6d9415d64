"""What a backend's author tells the conformance suite about their service."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import ClassVar

from backends.base import Backend, Context, Job, JobResources, LaunchRequest


class Circumstance(StrEnum):
    """What can be around a backend. Those that last are set up by `Harness.during`."""

    RUNS = "jobs run the command line that was launched"
    """Nothing to set up: whether the service (or its stand-in) really runs anything."""
    COUNTED = "calls to the service are counted and kept"
    """Nothing to set up: whether `Harness.calls` and `Harness.sent` can tell."""
    SHARED = "managers can see each other's jobs"
    """Nothing to set up: where they cannot, another's job is taken for one that is gone."""
    KILLED = "somebody else ends a job"
    """Brought about by `Harness.kill`."""
    PREEMPTED = "the service takes a machine back"
    """Brought about by `Harness.preempt`."""

    HELD = "jobs are accepted and do not start"
    REPLY_LOST = "a launch is accepted and its reply is lost"
    """For every launch while it lasts; what the service is asked besides is answered."""
    LIST_TORN = "a list begins well and fails before its end"
    """A page after the first is refused for good, a line of the output is missing: whatever a
    partly read list is. The service has at least `Harness.more_than_a_page` jobs of ours then."""
    BRIEFLY_THROTTLED = "the service asks twice to be called less often, and then answers"
    THROTTLED = "the service asks to be called less often, every time"
    OUT_OF_CAPACITY = "the service has no machine"
    QUOTA_EXCEEDED = "the account may not have more jobs"
    UNAUTHORIZED = "the service does not take the credentials"
    UNREACHABLE = "nobody answers at the service's address"
    HANGING = "the service takes calls and never answers"


class Harness(ABC):
    """A service, or what stands in for it, in the hands of one test.

    Made by a fixture for one test (what is expensive may be shared between tests), which also ends
    what the test leaves. A circumstance that cannot exist on the service is named in
    ``impossible``, with the reason, which is shown: not one that is merely hard to bring about.
    """

    worker: Sequence[str]
    """A command line that jobs run instead of a worker: that of `stand_in`, where it can run."""
    impossible: ClassVar[Mapping[Circumstance, str]] = {}
    resources: JobResources = JobResources(cpus=1, gpus=0, memory_bytes=64 * 1024**2)
    patience_seconds: float = 60.0
    """How long the service may take until a job is where it should be."""
    longest_call_seconds: float = 60.0
    """What the backend promises: no verb takes longer for one job, whatever the service does."""
    retry_after_seconds: float | None = None
    """What the service says when it throttles; None: this service never says how long."""
    unknown_id: str = "no-such-job"
    """Spelled as the service's ids are, and of no job."""
    more_than_a_page: int = 3
    listed_at_scale: int = 1000
    launched_at_scale: int = 1000
    """1000, or as many as can be had where every one is a real process or container."""
    calls_per_launch: int = 1
    """Calls that one launch of ``capabilities.launches_per_call`` workers takes (create, start)."""

    @abstractmethod
    def backend(self, context: Context) -> Backend:
        """A new backend, as a manager that starts would make it: in the same directory it finds
        what an earlier one left there."""

    def pause(self) -> None:
        """Let time pass between two looks: a moment, or a step of the stand-in's own clock."""
        import threading

        threading.Event().wait(0.05)

    # What happens to a job. None of these need wait until the service shows it.

    def start(self, job: Job) -> None:
        """Whatever it takes that the job's worker starts: on most services nothing."""
        return

    @abstractmethod
    def finish(self, job: Job, exit_code: int) -> None:
        """The job's worker, which runs, leaves by itself with this exit code."""

    @abstractmethod
    def kill(self, job: Job) -> None:
        """Somebody else ends the running job for good, with the service's own tools."""

    @abstractmethod
    def preempt(self, job: Job) -> None:
        """The service takes back the machine on which the job runs."""

    # What is around the backend

    @abstractmethod
    def during(self, circumstance: Circumstance) -> AbstractContextManager[None]:
        """The circumstance holds inside, for every backend of this harness, and is gone after."""

    @abstractmethod
    def plant_neighbours(self, context: Context) -> list[str]:
        """Running jobs that are not this context's, as like to its own as the service allows, made
        by the service's own tools: named with the pool's name in front, without marks, or of
        another user. Returns their ids."""

    @abstractmethod
    def is_untouched(self, job_id: str) -> bool:
        """Whether a neighbour still runs, and nobody asked it to end."""

    def fill(self, backend: Backend, requests: Sequence[LaunchRequest]) -> None:
        """Have one job of the backend for each request, the cheapest way that there is."""
        backend.launch(requests)

    # What was asked of the service

    @abstractmethod
    def calls(self) -> int:
        """How many calls the service got so far (requests at its socket, runs of its tools)."""

    @abstractmethod
    def sent(self) -> str:
        """All that the service was sent so far, as text, command lines of its tools included;
        except what its store of secrets was given to keep."""
