"""The images of a container engine: pulled once for all who wait, kept under a quota.

An image that a worker brought is marked in the engine itself, by a tag that also says when it was
last used (`worker-manager.cache/image:<id>.<epoch>`): so all workers of the engine, and those who
come after them, share one cache, and nothing that somebody else brought is ever removed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from bundles.sizes import format_size
from worker.backoff import Backoff
from worker.loop import Loop
from worker.pulls import USED_SECONDS, Image, ImageFailed, Pull, Pulls
from worker.registry import (
    Reference,
    Silent,
    find_credentials,
    image_bytes,
    parse_reference,
)
from worker.runtimes.engine import Engine, Unanswered, explain

log = logging.getLogger(__name__)

CACHE = "worker-manager.cache/image"
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0


class Images(Pulls):
    """See worker.pulls.Pulls."""

    def __init__(
        self,
        engine: Engine,
        loop: Loop,
        *,
        max_image_bytes: int | None = None,
        max_cache_bytes: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(loop, max_cache_bytes=max_cache_bytes)
        self._engine = engine
        self._max_image_bytes = max_image_bytes
        self._now = now
        self._marked: dict[str, float] = {}
        self._pruning = threading.Lock()
        self._platform = ""

    def get(self, pull: Pull) -> Image:
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        while True:
            try:
                return self._get(pull)
            except Unanswered as error:
                log.warning("image %s waits for the engine: %s", pull.reference, error)
            pull.status = "Waiting for the container engine"
            pull.cancelled.wait(backoff.next_seconds())
            pull.check()
            pull.status = ""

    def _get(self, pull: Pull) -> Image:
        try:
            reference = parse_reference(pull.reference)
        except ValueError as error:
            raise ImageFailed(f"Cannot get image: {error}") from error
        self._read_credentials()
        try:
            here = self._inspect(pull.reference)
            if here is not None and (reference.is_digest or self._is_current(pull, here)):
                self.note_use(here["Id"])
                return _image(pull.reference, here)
            try:
                self._check_size(pull, reference)
                before = {image["Id"] for image in self._engine.images(all=True)}
                self._pull(pull, reference)
            except (ImageFailed, DockerException, *Unanswered) as error:
                if isinstance(error, ImageFailed) or here is None:
                    raise
                log.info("image %s: %s; the one that is here is used", pull.reference, error)
                self.note_use(here["Id"])
                return _image(pull.reference, here)
            found = self._inspect(pull.reference)
            if found is None:
                raise ImageFailed(f"Cannot get image {pull.reference}: it was removed at once")
            if found["Id"] in before:
                self.note_use(found["Id"])  # under another name somebody else may have brought it
            else:
                self._mark(found["Id"])
        except APIError as error:
            is_missing = isinstance(error, NotFound)
            said = self._explain(pull.reference, explain(error), is_missing=is_missing)
            raise ImageFailed(said) from error
        if self.max_cache_bytes is not None:
            self.prune(keep=found["Id"])
        return _image(pull.reference, found)

    def _read_credentials(self) -> None:
        """The client remembers what it read first; but whoever is logged in may change, and some
        registries' passwords hold for hours."""
        try:
            self._engine.reload_config()
        except (DockerException, ValueError, TypeError, AttributeError) as error:
            log.warning("Docker's configuration makes no sense, and holds as it was: %s", error)

    def _explain(self, reference: str, said: str, *, is_missing: bool = False) -> str:
        if is_missing or re.search("manifest unknown|not found", said):
            return f"There is no image {reference}: {said}"
        if re.search("unauthorized|denied|no basic auth credentials", said):
            return f"This worker may not pull image {reference}: {said}"
        return f"Cannot pull image {reference}: {said}"

    def _inspect(self, reference: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._engine.inspect_image(reference)  # type: ignore[no-untyped-call]
        except (ImageNotFound, NotFound):
            return None
        return found

    def _is_current(self, pull: Pull, here: dict[str, Any]) -> bool:
        """Whether the image of a tag is what its registry has; it is if that does not answer."""
        pull.status = f"Asking for the latest image {pull.reference}"
        if not here.get("RepoDigests"):
            # It was built or loaded here; whatever a registry has of that name is another.
            return True
        try:
            said = self._engine.inspect_distribution(  # type: ignore[no-untyped-call]
                pull.reference
            )
            latest = said["Descriptor"]["digest"]
        except (DockerException, *Unanswered, KeyError) as error:
            log.info("image %s: %s; the one that is here is used", pull.reference, error)
            return True
        return any(digest.endswith(f"@{latest}") for digest in here["RepoDigests"])

    def _check_size(self, pull: Pull, reference: Reference) -> None:
        if self._max_image_bytes is None:
            return
        pull.status = f"Asking for the size of image {pull.reference}"
        try:
            credentials = find_credentials(reference)
            size_bytes = image_bytes(reference, credentials, self._architecture())
        except (Silent, DockerException) as error:
            log.warning("%s; it is pulled all the same", error)
            return
        self._refuse_large(pull, size_bytes)

    def _refuse_large(self, pull: Pull, size_bytes: int) -> None:
        assert self._max_image_bytes is not None
        if size_bytes > self._max_image_bytes:
            raise ImageFailed(
                f"The size of image {pull.reference}, {format_size(size_bytes)}, exceeds the "
                f"maximum image size of this worker, {format_size(self._max_image_bytes)}"
            )

    def _architecture(self) -> str:
        if not self._platform:
            self._platform = str(self._engine.version().get("Arch", "amd64"))
        return self._platform

    def _pull(self, pull: Pull, reference: Reference) -> None:
        pull.status = f"Pulling image {pull.reference}"
        done: dict[str, int] = {}
        total: dict[str, int] = {}
        name = pull.reference.partition("@")[0]
        head, colon, tag = name.rpartition(":")
        repository = head if colon and "/" not in tag else name
        stream = self._engine.pull(repository, tag=reference.version, stream=True, decode=True)
        for line in stream:
            pull.check()
            if "error" in line:
                raise ImageFailed(self._explain(pull.reference, line["error"]))
            detail = line.get("progressDetail") or {}
            layer = str(line.get("id", ""))
            if line.get("status") == "Downloading" and detail.get("total"):
                done[layer], total[layer] = int(detail.get("current", 0)), int(detail["total"])
            elif line.get("status") in ("Download complete", "Pull complete") and layer in total:
                done[layer] = total[layer]
            if total:
                pull.status = (
                    f"Pulling image {pull.reference}: {format_size(sum(done.values()))} of "
                    f"{format_size(sum(total.values()))}"
                )

    # The cache

    def _mark(self, image_id: str) -> None:
        """A worker brought the image: say so, and that it is in use now."""
        now = self._now()
        self._engine.tag(image_id, CACHE, _mark_of(image_id, now))
        self._marked[image_id] = now

    def note_use(self, image_id: str) -> None:
        """Note the use of an image, if a worker brought it."""
        now = self._now()
        last = self._marked.get(image_id)
        if last is not None and now - last < USED_SECONDS:
            return
        with suppress(DockerException, *Unanswered):
            found = self._inspect(image_id)
            marks = [t for t in (found or {}).get("RepoTags") or () if t.startswith(f"{CACHE}:")]
            if not marks:
                self._marked[image_id] = now  # not ours: it is not looked at again so soon
                return
            self._mark(image_id)
            for mark in marks:
                if mark != f"{CACHE}:{_mark_of(image_id, now)}":
                    with suppress(APIError):  # another worker did it
                        self._engine.remove_image(mark, noprune=True)

    def prune(self, keep: str = "") -> None:
        """Remove images that workers brought, least recently used first, until they fit."""
        assert self.max_cache_bytes is not None
        with self._pruning:
            found: dict[str, tuple[float, int, list[str]]] = {}
            for image in self._engine.images(filters={"reference": CACHE}):
                tags = image.get("RepoTags") or []
                used = [_used_at(tag) for tag in tags if tag.startswith(f"{CACHE}:")]
                if used:
                    found[image["Id"]] = (max(used), int(image["Size"]), tags)
            total = sum(size_bytes for _, size_bytes, _ in found.values())
            if total <= self.max_cache_bytes:
                return
            containers = {c.get("ImageID") for c in self._engine.containers(all=True)}
            for image_id, (used_at, size_bytes, _) in sorted(
                found.items(), key=lambda item: item[1][0]
            ):
                if total <= self.max_cache_bytes:
                    return
                if image_id == keep or image_id in self.in_use or image_id in containers:
                    continue
                if image_id not in self._marked and self._now() - used_at < USED_SECONDS:
                    continue  # another worker may be about to start a run with it
                if self._evict(image_id):
                    total -= size_bytes

    def _evict(self, image_id: str) -> bool:
        self.forget(image_id)
        image = self._inspect(image_id)
        if image is None:
            return True
        tags = [tag for tag in image.get("RepoTags") or () if not tag.startswith(f"{CACHE}:")]
        marks = [tag for tag in image.get("RepoTags") or () if tag.startswith(f"{CACHE}:")]
        try:
            for name in [*tags, *(image.get("RepoDigests") or ()), *marks]:
                with suppress(NotFound):
                    self._engine.remove_image(name)
        except APIError as error:
            log.info("the image %s stays: %s", image_id, explain(error))
            return False
        self._marked.pop(image_id, None)
        log.info("removed the image %s to make room", (tags or [image_id])[0])
        return True


def _mark_of(image_id: str, when: float) -> str:
    return f"{image_id.removeprefix('sha256:')[:16]}.{int(when)}"


def _used_at(tag: str) -> float:
    stamp = tag.rpartition(".")[2]
    return float(stamp) if stamp.isdigit() else 0.0


def _image(reference: str, found: dict[str, Any]) -> Image:
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    repository = head if colon and "/" not in tag else name
    digests = [d for d in found.get("RepoDigests") or () if not d.startswith(f"{CACHE}@")]
    same = [digest for digest in digests if digest.partition("@")[0] == repository]
    return Image(reference, found["Id"], (same or digests or [""])[0])
