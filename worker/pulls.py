"""Images on their way: one pull for all who wait for it, and what is known and in use.

Where images come from and where they are kept is the business of who derives from this
(worker.images, worker.sifs).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from worker.loop import Loop, Outcome, Pool

log = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""A tag that was compared with its registry is believed for so long."""
USED_SECONDS = 60.0
"""How exactly the last use is known; no image that was used so lately is removed."""
THREADS = 4


class ImageFailed(Exception):
    """An image could not be had; the message says which and why."""


class Cancelled(Exception):
    """Nobody waits for the image any more."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here. ``digest`` names it as its registry does: `NAME@sha256:…`; it is
    empty for one that never was in a registry."""

    reference: str
    id: str
    digest: str


Done = Callable[[Image | ImageFailed], None]


@dataclass
class Pull:
    """An image on its way. ``status`` is for a person."""

    reference: str
    waiting: list[Done] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    status: str = ""

    def check(self) -> None:
        """Raises Cancelled."""
        if self.cancelled.is_set():
            raise Cancelled(f"Nobody needs image {self.reference} any more")


class Pulls(ABC):
    """Methods are for the loop, unless they say otherwise. ``max_cache_bytes`` None: keep all."""

    def __init__(self, loop: Loop, *, max_cache_bytes: int | None) -> None:
        self.loop = loop
        self.max_cache_bytes = max_cache_bytes
        self.closed = threading.Event()
        self._pool = Pool(loop, "images", THREADS)
        self._pulls: dict[str, Pull] = {}
        self._known: dict[str, tuple[Image, float]] = {}
        """By reference: what was found, and until when (the loop's clock) it is believed."""
        self.in_use: dict[str, int] = {}
        """How many hold each, by id."""

    @abstractmethod
    def get(self, pull: Pull) -> Image:
        """In a thread: the image, from here or from its registry. Raises ImageFailed, Cancelled."""

    @abstractmethod
    def note_use(self, image_id: str) -> None:
        """In a thread: it is used now."""

    @abstractmethod
    def prune(self) -> None:
        """In a thread: remove what is not used until the rest fits ``max_cache_bytes``."""

    def request(self, reference: str, done: Done) -> None:
        """Call ``done`` with the image, at once if it is known to be here, or the failure. The
        image is in use until ``release``."""
        known = self.known(reference)
        if known is not None:
            self._take(known)
            self._pool.submit(partial(self.note_use, known.id), self._noted)
            done(known)
            return
        pull = self._pulls.get(reference)
        if pull is None or pull.cancelled.is_set():
            pull = self._pulls[reference] = Pull(reference)
            self._pool.submit(partial(self.get, pull), partial(self._got, pull))
        pull.waiting.append(done)

    def known(self, reference: str) -> Image | None:
        """The image, if it was found lately."""
        known = self._known.get(reference)
        return known[0] if known is not None and known[1] > self.loop.clock() else None

    def withdraw(self, reference: str, done: Done) -> None:
        """Do not call that ``done`` any more; the last to withdraw ends the pull."""
        pull = self._pulls.get(reference)
        if pull is not None and done in pull.waiting:
            pull.waiting.remove(done)
            if not pull.waiting:
                pull.cancelled.set()
                del self._pulls[reference]

    def release(self, image: Image) -> None:
        """One who was given it needs it no more."""
        left = self.in_use.get(image.id, 0) - 1
        if left > 0:
            self.in_use[image.id] = left
        else:
            self.in_use.pop(image.id, None)
            self.tidy()

    def tidy(self) -> None:
        """Something that used an image is gone: make room, if there is too little. From any
        thread."""
        if self.max_cache_bytes is not None and not self.closed.is_set():
            self._pool.submit(self.prune, self._noted)

    def status(self, reference: str) -> str:
        """What is done for a request, for a person."""
        pull = self._pulls.get(reference)
        return (pull.status if pull is not None else "") or f"Looking for image {reference}"

    def lose(self, reference: str) -> None:
        """The image turned out not to be there. From any thread."""
        self._known.pop(reference, None)

    def refresh(self) -> None:
        """The engine was away: believe nothing. From any thread."""
        self._known = {}

    def close(self) -> None:
        self.closed.set()
        for pull in self._pulls.values():
            pull.cancelled.set()

    def _take(self, image: Image) -> None:
        self.in_use[image.id] = self.in_use.get(image.id, 0) + 1

    def _got(self, pull: Pull, outcome: Outcome[Image]) -> None:
        if self._pulls.get(pull.reference) is pull:
            del self._pulls[pull.reference]
        result: Image | ImageFailed
        if outcome.error is None:
            result = outcome.value
            self._known[pull.reference] = (result, self.loop.clock() + FRESH_SECONDS)
        elif isinstance(outcome.error, ImageFailed | Cancelled):
            result = ImageFailed(str(outcome.error))
        else:
            log.error("an image could not be had", exc_info=outcome.error)
            result = ImageFailed(f"Cannot get image {pull.reference}: {outcome.error}")
        for done in pull.waiting:
            if isinstance(result, Image):
                self._take(result)
            done(result)

    def _noted(self, outcome: Outcome[Any]) -> None:
        if outcome.error is not None:
            log.warning("the cache of images: %s", outcome.error)

    def forget(self, image_id: str) -> None:
        """It is about to be removed. From any thread."""
        self._known = {r: k for r, k in self._known.items() if k[0].id != image_id}
