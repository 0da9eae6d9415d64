"""One manager of a pool on several hosts: leases of the pools' names at the server of bundles.

On one host and home that is manager.lock; a server that keeps no leases leaves it at that. What a
manager without its lease does not do is not decided here, but for LeasedBackend.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backends.base import Backend, BackendError, LaunchRequest, LaunchResult
from backends.base import Unreachable as BackendUnreachable
from bundles.errors import BundlesError, Conflict, ServerFault, Unreachable
from manager.alarm import Alarm
from manager.wrapped import WrappedBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bundles.client import Client

TTL_SECONDS = 15.0
"""Of a manager that is gone nothing is heard for so long until another may take over."""
RENEWAL_SECONDS = 5.0
RETRY_SECONDS = 1.0
MARGIN_SECONDS = 4.0
"""What a call to a backend may take: none is begun when the lease is sure for less than that."""
WAIT_SECONDS = 25.0
"""How long the server holds its answer to one who waits for a lease."""

log = logging.getLogger("manager")


class LeaseLost(Conflict):
    """Another manager keeps the pools, or one of them: this one launches and ends nothing."""


@dataclass(frozen=True, slots=True)
class _Hold:
    """``sure_until``: of our own clock, counted from before the server was asked."""

    fences: Mapping[str, int] = field(default_factory=dict)
    sure_until: float = float("-inf")


def boot_seconds() -> float:
    """A clock that goes on while the machine is suspended, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def holder_of(directory: Path) -> str:
    """Who holds the leases of a home: for people to read, unlike those of any other home, and the
    same after a restart. Of one home and pool there is one manager at a time (manager.lock), so
    that one who is started after a crash need not wait for the lease of the one before."""
    path = directory / "holder"
    mark = uuid.uuid4().hex
    temporary = directory / f".holder-{mark}"
    try:
        if not path.exists():
            temporary.write_text(mark)
            with suppress(FileExistsError):
                os.link(temporary, path)
        mark = path.read_text().strip() or mark
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    # A home may be copied, or be on a disk that several machines share.
    return f"{socket.gethostname()[:60]}:{str(directory.parent)[-60:]} ({mark[:32]})"


class Lease:
    """The right to launch and end workers of all the pools that are wanted, or of none. A context:
    it is given back at the end.

    Taken in the manager's thread; a thread of its own renews it, and rings when it is lost.
    ``directory``: of this home, where it is written down who we are, and the last fence of each
    pool, by which we know whether a manager of another home, with a ledger of its own, kept it.
    """

    def __init__(
        self,
        client: Client,
        alarm: Alarm,
        directory: Path,
        *,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self._client = client
        self._pools: frozenset[str] = frozenset()
        self._alarm = alarm
        self._directory = directory
        self._strangers: dict[str, float] = {}
        self._holder = holder_of(directory)
        self._clock = clock
        self._hold = _Hold()
        self._has_asked = False
        self._is_missed = False
        self._is_waiting = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewing: threading.Thread | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._give_back(self._hold.fences)

    @property
    def is_held(self) -> bool:
        """Whether it is sure that nobody else has it; True where a server keeps no leases."""
        if not self._is_offered:
            return self._has_asked
        hold = self._hold
        return (
            self._clock() < hold.sure_until - MARGIN_SECONDS and hold.fences.keys() >= self._pools
        )

    def fence(self, pool: str) -> int | None:
        """By which the server knows that it is still ours; None where it keeps no leases.

        Raises LeaseLost.
        """
        if not self._is_offered and self._has_asked:
            return None
        found = self._hold.fences.get(pool) if self.is_held else None
        if found is None:
            raise LeaseLost(f"it is not sure any more that the pool {pool} is this manager's")
        return found

    def seconds_since_another(self, pool: str) -> float:
        """How long ago the pool was taken over from a manager of another home: what that one
        launched is in no ledger of ours. Infinite when it was not."""
        return self._clock() - self._strangers.get(pool, float("-inf"))

    def take(self) -> None:
        """See to it that it is held. Asked again after LeaseLost it waits a while for the other
        manager to end.

        Raises LeaseLost, which says who keeps which pool, and BundlesError when the server does
        not answer. To be called where a signal may interrupt it.
        """
        if not self._has_asked:
            self._client.whoami()  # with the first reply it is known what the server offers
            self._has_asked = True
        if not self._is_offered:
            self._say_that_there_are_none()
        elif not self.is_held:
            self._acquire(self._pools, WAIT_SECONDS if self._is_waiting else 0.0)

    def want(self, pool: str) -> None:
        """One pool more, from the next ``take`` on."""
        self._pools |= {pool}

    def claim(self, pool: str) -> None:
        """One pool more, now. Raises LeaseLost, and changes nothing, when another manager keeps
        it; a server that does not answer is asked again with the next ``take``."""
        if self._is_offered:
            with suppress(Unreachable, ServerFault):
                self._acquire(self._pools | {pool}, 0.0)
        self.want(pool)

    def drop(self, pool: str) -> None:
        """A pool is kept no more."""
        self._pools -= {pool}
        with self._lock:
            hold = self._hold
            fences = {name: fence for name, fence in hold.fences.items() if name != pool}
            self._hold = _Hold(fences, hold.sure_until)
        self._give_back({name: hold.fences[name] for name in hold.fences.keys() - fences.keys()})

    @property
    def _is_offered(self) -> bool:
        return "leases" in self._client.features

    def _say_that_there_are_none(self) -> None:
        if not self._is_missed:
            log.info(
                "%s keeps no leases: a manager of another home that keeps the same pool is not "
                "noticed",
                self._client.server,
            )
        self._is_missed = True

    def _acquire(self, pools: frozenset[str], wait_seconds: float) -> None:
        try:
            fences = self._client.acquire_leases(
                sorted(pools), self._holder, TTL_SECONDS, wait_seconds=wait_seconds
            )
            # It may be from any moment of the wait: only a renewal says since when it is ours.
            sent = self._clock()
            self._client.renew_leases(fences, self._holder)
        except Conflict as error:
            self._is_waiting = pools == self._pools
            raise LeaseLost(
                f"another manager keeps a pool: {error}; --pool NAME keeps one of another name"
            ) from error
        if self._is_waiting:
            log.info("this manager keeps %s now", ", ".join(sorted(pools)))
        self._is_waiting = False
        for pool, fence in fences.items():
            if fence != self._hold.fences.get(pool):
                self._notice(pool, fence)
        with self._lock:
            self._hold = _Hold(fences, sent + TTL_SECONDS)
        if self._renewing is None:
            self._renewing = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
            self._renewing.start()

    def _notice(self, pool: str, fence: int) -> None:
        """Find out by the fences whether somebody else had it since we did."""
        path = self._directory / f"{pool}.fence"
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = 0
        if fence > 1 and not 0 <= fence - last <= 1:
            self._strangers[pool] = self._clock()
            log.info("%s was kept by a manager of another home before", pool)
        with suppress(OSError):  # then somebody seems to have had it when it is taken again
            path.write_text(f"{fence}\n")

    def _keep_renewing(self) -> None:
        """In a thread: again and again, until it is closed."""
        pause_seconds = RENEWAL_SECONDS
        while not self._closing.wait(pause_seconds):
            pause_seconds = self.renew()

    def renew(self) -> float:
        """Hold it for another while, or find that it is lost, if it is held. From any thread.
        Returns when to do so next, in seconds."""
        hold = self._hold
        if not hold.fences:
            return RENEWAL_SECONDS
        sent = self._clock()
        try:
            self._client.renew_leases(hold.fences, self._holder)
            renewed = _Hold(hold.fences, sent + TTL_SECONDS)
        except Conflict:
            renewed = _Hold()
        except BundlesError as error:
            log.debug("the lease was not renewed: %s", error)
            return RETRY_SECONDS
        with self._lock:
            is_news = self._hold is hold  # and was not taken anew meanwhile, nor a part given back
            if is_news:
                self._hold = renewed
        if is_news and not renewed.fences:
            self._alarm.ring()
        return RENEWAL_SECONDS

    def _give_back(self, fences: Mapping[str, int]) -> None:
        if fences:
            with suppress(BundlesError):  # it runs out by itself
                self._client.release_leases(fences, self._holder)


class LeasedBackend(WrappedBackend):
    """Launches and ends nothing while it is not sure that the pool is ours: looked at right before
    each call."""

    def __init__(self, inner: Backend, lease: Lease) -> None:
        super().__init__(inner)
        self._lease = lease

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run or self._lease.is_held:
            return self.inner.launch(requests, dry_run=dry_run)
        return [_not_ours() for _ in requests]

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        if self._lease.is_held:
            return self.inner.terminate(job_ids)
        return {job_id: _not_ours() for job_id in job_ids}


def _not_ours() -> BackendUnreachable:
    return BackendUnreachable(
        "not asked for: it is not sure any more that the pool is this manager's"
    )
