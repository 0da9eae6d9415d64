"""When a worker leaves, and how: what becomes of its runs, and what the server is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial

from bundles.client import Client
from bundles.errors import BundlesError
from bundles.exits import WorkerExit
from worker.checkin import Reporter, Trouble
from worker.fitness import CLOCK_FAULT_SECONDS, clock_difference
from worker.loop import Loop, Outcome, Pool, Timer
from worker.preemption.base import Notice
from worker.runs import Runs
from worker.settings import Settings
from worker.stages import Revoked, Stage
from worker.tally import Tally

log = logging.getLogger(__name__)

START_PATIENCE_SECONDS = 60.0
"""How long a worker without runs waits for a server at its start."""
AWAY_PATIENCE_SECONDS = 24 * 3600.0
"""How long one keeps its runs for a server that is away, or does not take its credentials."""
CHANCE_SECONDS = 2.0
"""A worker that never had a bundle gives the server so long to find it one: else it might leave
before, be launched again for the same bundle, and leave again."""
IDLE_AWAY_SECONDS = 60.0
"""How long an idle worker that should leave waits to say so to a server that is away."""
CONFIRMATION_SECONDS = 3.0
"""How long a worker that was asked to end waits for the word that its last results are known."""
LAST_WORDS_SECONDS = 3.0
GIVE_BACK_SECONDS = 15.0
CHECKOUT_SECONDS = 5.0


_OVER = (Stage.FINALIZING, Stage.FINISHED)


class Departure:
    """For the loop's thread. ``is_ending``: nothing more is taken, ``is_draining``: by the server's
    word; ``is_leaving``: nothing more is done, either."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        loop: Loop,
        reporter: Reporter,
        runs: Runs,
        requests: Pool,
        is_expecting: Callable[[], bool],
    ) -> None:
        """``is_expecting``: whether a run may be about to come."""
        self.is_draining = False
        self.is_leaving = False
        self.exit = WorkerExit.FAILED
        self._settings = settings
        self._client = client
        self._loop = loop
        self._reporter = reporter
        self._runs = runs
        self._requests = requests
        self._is_expecting = is_expecting
        self._tally = Tally(settings.own_directory / "taken")
        self._idle_since = loop.clock()
        self._idle_timer: Timer | None = None
        self._is_started = False
        self._has_had_a_run = False
        self._is_asked = False
        self._is_ending = False
        self._drain_reason = ""
        self._reason = "terminated"
        self._code = WorkerExit.TERMINATED

    @property
    def is_ending(self) -> bool:
        return self._is_ending or self.is_draining

    @property
    def _is_preempted(self) -> bool:
        return self._code is WorkerExit.PREEMPTED

    @property
    def runs_left(self) -> int | None:
        """How many more runs there are to be; None: no such limit."""
        limit = self._settings.exit_after_num_runs
        return None if limit is None else max(0, limit - len(self._tally))

    def started(self, clock_skew_seconds: float | None) -> None:
        """The server has answered for the first time, and said what time it has."""
        self._is_started = True
        difference = clock_difference(clock_skew_seconds or 0.0)
        if difference is not None:
            log.warning("%s", difference)
            if abs(clock_skew_seconds or 0.0) > CLOCK_FAULT_SECONDS and not self._runs.held:
                self._check_out(difference, WorkerExit.WRONG_CLOCK)
                return
        if self._reporter.is_batch:
            self.consider()

    def accepted(self, keys: Collection[str]) -> None:
        """There are these runs more, new ones or an earlier process's."""
        self._has_had_a_run |= bool(keys)
        if self._settings.exit_after_num_runs is not None:
            self._tally.add(keys)
        self._rest()

    def removed(self) -> None:
        """There is a run less."""
        if not self._runs.held:
            self._idle_since = self._loop.clock()
        self.consider()

    def terminate(self) -> None:
        """A signal asks the worker to end. The second one is not argued with."""
        if self._is_asked or self.is_leaving:
            self._finish(self._code if self._is_preempted else WorkerExit.TERMINATED)
            return
        self._is_asked = True
        if self._is_preempted:  # nobody will start this worker again on this machine
            self._runs.give_back(*Stage)
            self._reporter.now()
            return
        self._is_ending = True
        if all(held.run.stage in _OVER for held in self._runs.held.values()):
            self._code = WorkerExit.FINISHED
            self._loop.call_later(CONFIRMATION_SECONDS, self._confirm)
            self._say_so()  # or once the last one is removed
        else:
            self.let_go()

    def drain(self, notice: Notice) -> None:
        """This machine goes away. What may end before it does goes on; the rest is given back."""
        if self._is_ending or self.is_leaving:
            return
        self._is_ending = True
        self._reason, self._code = notice.reason, WorkerExit.PREEMPTED
        left = notice.seconds_left
        log.warning("%s in %.0f s: no more bundles are taken", notice.reason, left)
        reserve = min(GIVE_BACK_SECONDS, left / 3)
        self._runs.give_back(Stage.PREPARING)
        self._loop.call_later(
            left - reserve, partial(self._runs.give_back, Stage.PREPARING, Stage.RUNNING)
        )
        self._loop.call_later(left - reserve / 2, partial(self._runs.give_back, *Stage))
        self._loop.call_later(
            max(1.0, left - reserve / 5), partial(self._check_out, self._reason, self._code)
        )
        self._say_so()

    def told(self, is_draining: bool, reason: str) -> None:
        """The server's word that nothing more is to be taken here, or that it may be again. What
        runs goes on. A worker that ends for another reason is past minding it."""
        if is_draining != self.is_draining and not self._is_ending:
            log.info("%s", f"drained: {reason}" if is_draining else "bundles are taken again")
        self.is_draining, self._drain_reason = is_draining, reason
        self._say_so()

    def let_go(self) -> None:
        """Give the runs back, or leave them as they are, as the options say, and leave; also for
        a run that came after the worker was asked to."""
        if self._is_preempted:
            self._runs.give_back(Stage.PREPARING)
            return
        self._code = WorkerExit.TERMINATED
        if self._settings.pass_down_termination:
            self._runs.give_back(*Stage)
            self._reporter.now()
            self._loop.call_later(
                GIVE_BACK_SECONDS, partial(self._check_out, self._reason, self._code)
            )
        else:
            log.info(
                "leaving %d runs as they are: start this worker again over %s to go on with them",
                len(self._runs.held),
                self._settings.work_directory,
            )
            self.say_last_words(WorkerExit.TERMINATED)

    def say_last_words(self, code: WorkerExit) -> None:
        """Leave with one more check-in, whatever is under way."""
        self._leave()
        self._reporter.last_words(partial(self._finish, code))
        self._loop.call_later(LAST_WORDS_SECONDS, partial(self._finish, code))

    def troubled(self, trouble: Trouble, error: BundlesError) -> None:
        """See worker.checkin.Speaker."""
        if self.is_leaving:
            return
        since = self._reporter.failing_since
        lasted = self._loop.clock() - since if since is not None else 0.0
        is_new = not self._reporter.has_answered and not self._runs.held
        if trouble is Trouble.REPLACED:
            log.error("this worker stops: %s", error)
            self._give_up_runs(WorkerExit.REPLACED)
        elif trouble is Trouble.UNAUTHORIZED and (is_new or lasted > AWAY_PATIENCE_SECONDS):
            self._give_up(WorkerExit.UNAUTHORIZED, error)
        elif trouble is Trouble.REFUSED and is_new:
            self._give_up(WorkerExit.USAGE, error)
        elif trouble is Trouble.AWAY and lasted > (
            START_PATIENCE_SECONDS if is_new else AWAY_PATIENCE_SECONDS
        ):
            self._give_up(WorkerExit.UNREACHABLE, error)
        else:
            self.consider()

    def consider(self) -> None:
        """Leave, if there is a reason to and nothing left to do."""
        if self._runs.held or self._is_expecting():
            return
        if self.is_leaving:
            if self.exit is WorkerExit.REPLACED:
                self._finish(self.exit)
            return
        settings = self._settings
        if self._is_ending:
            self._check_out(self._reason, self._code)
            return
        if self.is_draining:
            why = f"drained: {self._drain_reason}" if self._drain_reason else "drained"
            self._check_out(why, WorkerExit.FINISHED)
            return
        if self.runs_left == 0:
            if self._reporter.may_stop_listening:
                self._check_out("it ran as many bundles as it should", WorkerExit.FINISHED)
            return
        if not settings.exit_when_idle or not self._is_started:
            return
        idle = self._loop.clock() - self._idle_since
        since = self._reporter.failing_since
        needed = settings.idle_seconds
        if not self._has_had_a_run:
            needed = max(needed, CHANCE_SECONDS)
        if since is not None:
            # A server that comes back may have work, and wants to hear that we leave.
            needed = max(needed, since - self._idle_since + IDLE_AWAY_SECONDS)
        if idle >= needed:
            if self._reporter.may_stop_listening:
                self._check_out("idle", WorkerExit.FINISHED)
            return
        self._rest()
        self._idle_timer = self._loop.call_later(needed - idle, self.consider)

    def _confirm(self) -> None:
        """The server has not said that it knows the last results."""
        if not self.is_leaving and any(
            held.run.stage is not Stage.FINISHED for held in self._runs.held.values()
        ):
            self.let_go()

    def _say_so(self) -> None:
        """Leave, or else tell the server that nothing more is to come here."""
        self.consider()
        if not self.is_leaving:
            self._reporter.now()

    def _rest(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _give_up(self, code: WorkerExit, error: BundlesError) -> None:
        log.error("%s", error)
        self._finish(code)

    def _give_up_runs(self, code: WorkerExit) -> None:
        self._leave()
        self.exit = code
        self._reporter.close()
        for held in list(self._runs.held.values()):
            self._runs.apply(held, Revoked())
        if not self._runs.held:
            self._finish(code)
        self._loop.call_later(GIVE_BACK_SECONDS, partial(self._finish, code))

    def _check_out(self, reason: str, code: WorkerExit) -> None:
        """Tell the server that we leave, and leave, whether it hears it or not."""
        if self.is_leaving:
            return
        self._leave()
        log.info("leaving: %s", reason)
        if "checkout" not in self._client.features:
            # A CodaLab server gives no more bundles to a worker that says it terminates.
            self.say_last_words(code)
            return
        self._reporter.close()
        session = self._reporter.session

        def done(outcome: Outcome[list[str]]) -> None:
            if isinstance(outcome.error, BundlesError):
                log.warning("the server does not know that this worker left: %s", outcome.error)
            self._finish(code)

        self._requests.submit(
            partial(self._client.checkout, self._settings.worker_id, session, reason), done
        )
        self._loop.call_later(CHECKOUT_SECONDS, partial(self._finish, code))

    def _leave(self) -> None:
        self.is_leaving = True
        self._runs.may_start = False

    def _finish(self, code: WorkerExit) -> None:
        self._leave()
        self.exit = code
        self._reporter.close()
        self._loop.stop()
