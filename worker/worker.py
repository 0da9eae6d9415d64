"""The worker itself: what its server tells it and is told, from its start to its end.

Everything here happens in the loop's thread. What becomes of a run is in worker.runs, when the
worker leaves in worker.departure.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bundles.client import Client
from bundles.errors import BundlesError
from bundles.exits import WorkerExit
from worker.checkin import Reporter, Trouble
from worker.clock import SteadyClock
from worker.departure import Departure
from worker.doorbell import Doorbell, find_address
from worker.lease import Lease
from worker.loop import Loop, Outcome, Pool
from worker.messages import (
    DrainMessage,
    FinalizedMessage,
    KillMessage,
    NetcatMessage,
    ReadMessage,
    RevokeMessage,
    RunMessage,
    Unreadable,
    WriteMessage,
    read_message,
)
from worker.preemption.base import Notice
from worker.recovery import recover
from worker.report import describe_run
from worker.runs import Runs, RuntimeFactory
from worker.settings import Settings
from worker.stages import Finalized, KillRequested, NotStarted, Revoked, Run, Stage
from worker.visits import Visits

log = logging.getLogger(__name__)

NO_LIMIT_OF_RUNS = 999_999_999
"""What CodaLab's workers report."""


class Worker:
    """One worker from its start to its end: ``run`` is its whole life."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        loop: Loop,
        make_runtime: RuntimeFactory,
        *,
        clock: SteadyClock,
    ) -> None:
        self._settings = settings
        self._client = client
        self._loop = loop
        self._now = clock
        self._hostname = socket.gethostname()
        self._start = loop.clock()
        self._is_started = False
        self._asked_to_start = 0
        self._requests = Pool(loop, "requests", 2)
        self._reporter = Reporter(
            client,
            loop,
            settings.worker_id,
            self,
            frequency_seconds=settings.checkin_frequency_seconds,
        )
        self._runs = Runs(
            settings, client, loop, make_runtime, self._reporter, self._removed, now=clock
        )
        self._lease = Lease(loop, self._runs, stops=settings.stops_on_lost_lease)
        self._departure = Departure(
            settings,
            client,
            loop,
            self._reporter,
            self._runs,
            self._requests,
            lambda: self._asked_to_start > 0,
        )
        self._doorbell = Doorbell(
            find_address(client.server, settings.ws_server),
            settings.worker_id,
            lambda: loop.post(self._reporter.now),
        )
        self._visits = Visits(client, loop, settings.worker_id, self._runs.runtime.address)

    def run(self) -> WorkerExit:
        """Work until there is a reason to leave; returns that reason."""
        recover(self._settings.runs_directory, self._runs)
        self._departure.accepted(self._runs.held)
        self._lease.renew(self._loop.clock(), self._client.worker_lease_seconds)
        self._reporter.now()
        self._loop.run(self.stumbled)
        self._doorbell.close()
        self._runs.runtime.close()
        return self._departure.exit

    @property
    def holds_runs(self) -> bool:
        """Whether there are runs to come back to."""
        return bool(self._runs.held)

    def terminate(self) -> None:
        """A signal asks the worker to end."""
        self._departure.terminate()

    def preempted(self, notice: Notice) -> None:
        """The cloud says that this machine goes away."""
        self._departure.drain(notice)

    def _removed(self) -> None:
        self._departure.removed()

    # What the server is told

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """See worker.checkin.Speaker."""
        settings = self._settings
        told = self._runs.newest()
        runs = [
            describe_run(
                held,
                worker_id=settings.worker_id,
                fetching=self._runs.waiting_for(held) or None,
                now=self._now(),
                every_stage=not self._reporter.is_batch,
            )
            for held in told
        ]
        runs_left = self._departure.runs_left
        document = {
            "tag": settings.tag,
            "group_name": settings.group,
            "cpus": len(settings.devices.cpus),
            "gpus": len(settings.devices.gpus),
            "memory_bytes": settings.memory_bytes,
            "free_disk_bytes": _free_bytes(settings.work_directory),
            "dependencies": [
                list(key)
                for key in ([] if settings.shared_file_system else self._runs.cache.held_keys())
            ],
            "hostname": self._hostname,
            "runs": runs,
            "shared_file_system": settings.shared_file_system,
            "tag_exclusive": settings.tag_exclusive,
            "exit_after_num_runs": NO_LIMIT_OF_RUNS if runs_left is None else runs_left,
            "is_terminating": self._departure.is_ending or self._departure.is_leaving,
            "is_draining": self._departure.is_draining,
            "preemptible": settings.preemptible,
            "seconds_left": self._seconds_left(),
        }
        return document, {held.run.key: str(held.run.stage) for held in told}

    def _seconds_left(self) -> float | None:
        """Until this worker is ended; None: nobody has said that it will be."""
        lifetime = self._settings.lifetime_seconds
        if lifetime is None:
            return None
        return max(0.0, lifetime - (self._loop.clock() - self._start))

    def confirmed(self, states: Mapping[str, str]) -> None:
        """See worker.checkin.Speaker."""
        self._lease.renew(self._reporter.reached, self._client.worker_lease_seconds)
        if not self._is_started:
            self._is_started = True
            log.info("Worker started!")
            self._runs.heard()
            self._departure.started(self._client.clock_skew_seconds)
            if not self._reporter.is_batch:
                self._doorbell.start()
        if not self._reporter.is_batch:
            # The same reply may bring a run: whether to leave is considered after that.
            for key, stage in states.items():
                held = self._runs.held.get(key)
                if held is not None and stage == held.run.stage == Stage.RESTAGED:
                    self._runs.apply(held, Finalized())

    def listened(self) -> None:
        """See worker.checkin.Speaker."""
        self._departure.consider()

    def troubled(self, trouble: Trouble, error: BundlesError) -> None:
        """See worker.checkin.Speaker."""
        self._departure.troubled(trouble, error)

    # What it says

    def receive(self, document: Any) -> None:
        """See worker.checkin.Speaker. Raises OSError when the effect cannot be on disk now."""
        try:
            message = read_message(document)
        except Unreadable as error:
            log.warning("a message is left aside: %s", error)
            return
        self._runs.concerned = None
        if isinstance(message, DrainMessage):
            self._departure.told(message.is_draining, message.reason)
            return
        if isinstance(message, RunMessage):
            if self._departure.is_leaving or self._departure.is_ending:
                return  # it is staged again by the check-out, or for not being listed
            if message.claim is None and not self._reporter.is_batch:
                self._ask_to_start(message)
            else:
                self._accept(message)
            return
        held = self._runs.find(message.uuid, message.claim)
        match message:
            case KillMessage(reason=reason):
                if held is not None:
                    self._runs.apply(held, KillRequested(reason))
            case FinalizedMessage():
                if held is not None:
                    self._runs.apply(held, Finalized())
            case RevokeMessage():
                if held is not None:
                    self._runs.apply(held, Revoked())
            case WriteMessage():
                if held is not None:
                    self._visits.write(held, message)
            case ReadMessage() | NetcatMessage():
                self._visits.answer(held, message)

    def _accept(self, message: RunMessage) -> None:
        """A new run. Raises OSError when it cannot be written down: the message comes again."""
        if not self._runs.held:
            self._now.settle()
        run = Run(
            message.uuid, message.claim, message.bundle, message.resources, accepted=self._now()
        )
        if run.key in self._runs.held:
            return
        for other in [h for h in self._runs.held.values() if h.run.uuid == run.uuid]:
            if (other.run.claim or 0) > (run.claim or 0):
                return
            self._runs.apply(other, Revoked())
        held = self._runs.accept(run)
        self._departure.accepted([run.key])
        self._reporter.soon()
        if message.fault is not None:
            self._runs.apply(held, NotStarted(message.fault))
        else:
            self._runs.prepare(held)

    def _ask_to_start(self, message: RunMessage) -> None:
        """A server without claims wants to be asked whether the run is still ours."""

        def done(outcome: Outcome[bool]) -> None:
            self._asked_to_start -= 1
            if isinstance(outcome.error, BundlesError):
                log.warning("%s is not started: %s", message.uuid, outcome.error)
            elif outcome.value:
                self._accept(message)
                self._reporter.soon()
                if self._departure.is_ending:
                    self._departure.let_go()
            self._departure.consider()

        self._asked_to_start += 1
        self._requests.submit(
            partial(
                self._client.start_bundle,
                self._settings.worker_id,
                message.uuid,
                self._hostname,
                int(self._now()),
            ),
            done,
        )

    def stumbled(self, error: Exception) -> None:
        """Something unforeseen: the run that it happened to fails, the others go on."""
        held, self._runs.concerned = self._runs.concerned, None
        log.error("something unforeseen happened", exc_info=error)
        if self._settings.exit_on_exception:
            self._departure.say_last_words(WorkerExit.FAILED)
        elif held is not None and held.run.key in self._runs.held:
            self._runs.stumbled(held, error)


def _free_bytes(directory: Path) -> int:
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
