"""When a worker speaks to its server: one check-in always waits there, and news overtake it.

A server with the feature `batch` answers a waiting check-in when a later one comes, so that two
lanes are enough: the one that waits, and the one with the news. What happens while both are under
way goes into the next one.

To a CodaLab server one check-in is sent at a time, held for 5 s unless there is a message: it does
not look which of two is the later one, and would take a bundle back from ready to running. There
is always one but for the moment that a run gets to end in, since its bundle manager stands still
while it tries to reach a worker (1 s), and then gives the bundle to another.
"""

from __future__ import annotations

import collections
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol

from bundles.client import Client
from bundles.errors import (
    BundlesError,
    Conflict,
    NotAuthenticated,
    NotPermitted,
    ServerFault,
    Unreachable,
    UsageError,
)
from worker.backoff import Backoff
from worker.loop import Loop, Outcome, Pool, Timer
from worker.messages import message_id

log = logging.getLogger(__name__)

FEATURES = ("batch", "claims", "drain")
WAIT_SECONDS = 25.0
SOON_SECONDS = 0.03
"""News that nobody waits for (an acknowledgement, a run that began) wait so long for company: most
often for the end of a short run."""
CODALAB_SOON_SECONDS = 0.7
"""The same for a CodaLab server: a run that ends meanwhile need not wait for the reply to its
beginning. Less than the second for which the bundle manager tries to reach a worker."""
CODALAB_DEPENDENCIES_BYTES = 60_000
"""So much JSON of cached dependencies CodaLab's own worker reports: its server keeps it in a BLOB
of MySQL, which takes 64 KiB, and fails every check-in that says more."""
LANES = 2
HELD_SECONDS = 0.2
"""A check-in that was answered faster than this, with nothing, was not held."""
PAUSE_SECONDS = 0.5
"""Before the next one, then."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 10.0
REMEMBERED_MESSAGES = 20_000


class Trouble(Enum):
    """Why the server does not take a check-in, where trying again will hardly help."""

    REPLACED = "another worker took over this id"
    UNAUTHORIZED = "the credentials are not taken"
    REFUSED = "the request is not taken"
    AWAY = "no answer"


class News(Enum):
    """What there was in a reply."""

    NONE = "nothing new"
    RUN = "a run begins, or is to end"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class Flight:
    """A check-in under way. ``states``: what it says of each run, by key."""

    sequence: int
    sent: float
    acknowledged: tuple[str, ...]
    states: dict[str, str]


class Speaker(Protocol):
    """Who has something to say: the worker. All in the loop's thread."""

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """CodaLab's fields of a check-in, and the reported state of each run by its key."""

    def receive(self, document: Any) -> None:
        """A message, for the first time. An OSError keeps it from being acknowledged, so that
        it comes again."""

    def stumbled(self, error: Exception) -> None:
        """``receive`` raised something unforeseen."""

    def confirmed(self, states: dict[str, str]) -> None:
        """The server has answered a check-in that said this."""

    def listened(self) -> None:
        """No check-in is under way, and all that came was received: a moment to leave at."""

    def troubled(self, trouble: Trouble, error: BundlesError) -> None:
        """A check-in failed; it is tried again unless the speaker ends it."""


class Reporter:
    """For the loop's thread."""

    def __init__(
        self,
        client: Client,
        loop: Loop,
        worker_id: str,
        speaker: Speaker,
        *,
        frequency_seconds: float,
    ) -> None:
        self.session = uuid.uuid4().hex
        self.has_answered = False
        self.reached = 0.0
        """When the latest check-in was sent that was answered, by the loop's clock."""
        self.failing_since: float | None = None
        self._client = client
        self._loop = loop
        self._worker_id = worker_id
        self._speaker = speaker
        self._frequency_seconds = frequency_seconds
        self._pool = Pool(loop, "check-in", LANES + 1)
        self._sequence = 0
        self._flights: dict[int, Flight] = {}
        self._due: float | None = None
        self._not_before = 0.0
        self._timer: Timer | None = None
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._to_acknowledge: dict[str, None] = {}
        self._handled: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._is_closed = False

    @property
    def is_batch(self) -> bool:
        """Whether the server sends several messages a reply and wants them acknowledged."""
        return "batch" in self._client.features

    @property
    def may_stop_listening(self) -> bool:
        """Whether no message is lost by that: a CodaLab server sends none a second time."""
        return self.is_batch or not self._flights

    def now(self) -> None:
        """There is news that someone waits for."""
        self._want(0.0)

    def soon(self) -> None:
        """There is news that has time."""
        self._want(self._soon_seconds())

    def _soon_seconds(self) -> float:
        return SOON_SECONDS if self.is_batch else CODALAB_SOON_SECONDS

    def refresh(self) -> None:
        """Report figures, unless a report went out lately."""
        newest = max((f.sent for f in self._flights.values()), default=0.0)
        if self.is_batch and self._loop.clock() - newest > self._frequency_seconds * 0.9:
            self._want(0.0)

    def close(self) -> None:
        """Say nothing more, and hear nothing more."""
        self._is_closed = True

    def last_words(self, done: Callable[[], None]) -> None:
        """One more check-in, which is not held; nothing after it. Then ``done``, come what may."""
        self.close()
        document, _ = self._compose()
        document["wait_seconds"] = 0.0
        self._pool.submit(
            partial(self._client.checkin, self._worker_id, document), lambda _: done()
        )

    def _want(self, seconds: float) -> None:
        due = self._loop.clock() + seconds
        self._due = due if self._due is None else min(due, self._due)
        self._consider()

    def _consider(self) -> None:
        lanes = LANES if self.is_batch else 1
        if self._is_closed or self._due is None or len(self._flights) >= lanes:
            return
        when = max(self._due, self._not_before)
        if when > self._loop.clock():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(when - self._loop.clock(), self._consider)
            return
        self._due = None
        document, flight = self._compose()
        self._flights[flight.sequence] = flight
        self._pool.submit(
            partial(self._client.checkin, self._worker_id, document), partial(self._landed, flight)
        )

    def _compose(self) -> tuple[dict[str, Any], Flight]:
        document, states = self._speaker.describe()
        if not self.is_batch:
            document["dependencies"] = _as_many_as_fit(document["dependencies"])
        self._sequence += 1
        acknowledged = tuple(self._to_acknowledge)
        document |= {
            "features": FEATURES,
            "session": self.session,
            "sequence": self._sequence,
            "acknowledged": acknowledged,
            # The first one tells who is there, so it is not to be held.
            "wait_seconds": WAIT_SECONDS if self.has_answered else 0.0,
        }
        return document, Flight(self._sequence, self._loop.clock(), acknowledged, states)

    def _landed(self, flight: Flight, outcome: Outcome[list[dict[str, Any]]]) -> None:
        del self._flights[flight.sequence]
        if self._is_closed:
            return
        if outcome.error is not None:
            self._failed(outcome.error)
            return
        if self.failing_since is not None and self.has_answered:
            log.info("the server answers again")
        self.failing_since, self.has_answered, self._not_before = None, True, 0.0
        self.reached = max(self.reached, flight.sent)
        self._backoff.reset()
        for identity in flight.acknowledged:
            self._to_acknowledge.pop(identity, None)
        self._speaker.confirmed(flight.states)
        news = self._receive(outcome.value)
        if self._is_closed:
            return
        if self._flights:
            if self._to_acknowledge:
                self._want(self._soon_seconds())
            self._consider()
            return
        self._speaker.listened()
        if self._is_closed:
            return
        was_held = self._loop.clock() - flight.sent > HELD_SECONDS
        if news is News.RUN:
            # It is likely to have news itself before long; nothing else is worth the wait.
            pause = self._soon_seconds()
        elif news is News.OTHER or was_held or flight.sequence == 1:
            pause = 0.0
        else:
            pause = PAUSE_SECONDS
        self._want(pause)

    def _receive(self, documents: Sequence[Any]) -> News:
        news = News.NONE
        for document in documents:
            identity = message_id(document)
            if identity is not None and identity in self._handled:
                self._to_acknowledge[identity] = None
                continue
            try:
                self._speaker.receive(document)
            except OSError as error:
                log.error("a message has to wait: %s", error)
                continue
            except Exception as error:
                # One message must not keep the others, nor the next check-in, from coming.
                self._speaker.stumbled(error)
            if isinstance(document, Mapping) and document.get("type") in ("run", "kill"):
                news = News.RUN
            elif news is News.NONE:
                news = News.OTHER
            if identity is not None:
                self._to_acknowledge[identity] = None
                self._handled[identity] = None
                if len(self._handled) > REMEMBERED_MESSAGES:
                    self._handled.popitem(last=False)
        return news

    def _failed(self, error: Exception) -> None:
        match error:
            case Conflict():
                trouble = Trouble.REPLACED
            case NotAuthenticated():
                trouble = Trouble.UNAUTHORIZED
            case NotPermitted() | UsageError():
                trouble = Trouble.REFUSED
            case Unreachable() | ServerFault():
                trouble = Trouble.AWAY
            case BundlesError():
                trouble = Trouble.REFUSED
            case _:
                # Whatever it is, a worker that says nothing any more is worse.
                log.error("a check-in failed in a way that was not foreseen", exc_info=error)
                trouble, error = Trouble.AWAY, ServerFault(f"{type(error).__name__}: {error}")
        if self.failing_since is None:
            self.failing_since = self._loop.clock()
            if trouble is not Trouble.REPLACED:
                log.warning("the server does not take a check-in: %s", error)
        delay = self._backoff.next_seconds()
        self._not_before = max(self._not_before, self._loop.clock() + delay)
        assert isinstance(error, BundlesError)
        self._speaker.troubled(trouble, error)
        self._want(0.0)


def _as_many_as_fit(dependencies: list[list[str]]) -> list[list[str]]:
    """They only say where a bundle would start sooner, so that some may be left out."""
    size_bytes = 0
    for count, dependency in enumerate(dependencies):
        size_bytes += len(json.dumps(dependency)) + 1
        if size_bytes > CODALAB_DEPENDENCIES_BYTES:
            return dependencies[:count]
    return dependencies
