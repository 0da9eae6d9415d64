"""What a run needs before its command can start: its directory, an image, what it depends on.

Whether there are cpus for it by then is another matter (worker.runs).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bundles.errors import UsageError
from worker import records, shared
from worker.dependencies import Cache, DependencyFailed, Key
from worker.devices import Share
from worker.held import Held
from worker.links import place_links
from worker.loop import Loop, Outcome, Pool
from worker.runtimes.base import CannotStart, Job, Runtime, mount_name
from worker.settings import Settings
from worker.stages import Stage
from worker.trees import remove_tree

LOOK_SECONDS = 0.2
"""How often a directory that the server makes is looked for: nothing tells when it shows."""

Prepared = Callable[[Held, Exception | None], None]
"""Called once for each run that was begun and not withdrawn: all is there, or why it cannot be.
CannotStart is for the run's owner to read; any other exception was not foreseen."""


class Preparation:
    """For the loop's thread; what takes time is done in others."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        cache: Cache,
        loop: Loop,
        chores: Pool,
        prepared: Prepared,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._cache = cache
        self._loop = loop
        self._chores = chores
        self._prepared = prepared

    def begin(self, held: Held) -> None:
        """Make its directory, and get what it depends on."""
        held.contents.clear()
        if held.is_shared:
            self._look(held, self._loop.clock() + shared.PATIENCE_SECONDS)
            return
        try:
            remove_tree(held.directory)
            held.directory.mkdir(mode=0o755)
        except OSError as error:
            self._fail(held, f"Its directory cannot be made: {error.strerror}")
            return
        self._get(held)

    def _look(self, held: Held, deadline: float) -> None:
        """Find what the server has laid out; it may take a moment to show here."""
        attempt = held.attempt

        def looked(outcome: Outcome[dict[Key, Path]]) -> None:
            if held.attempt != attempt or held.run.stage is not Stage.PREPARING:
                return
            if isinstance(outcome.error, shared.NotThere) and self._loop.clock() < deadline:
                held.status = f"Waiting for {held.directory}"
                held.timers.append(
                    self._loop.call_later(LOOK_SECONDS, partial(self._look, held, deadline))
                )
            elif outcome.error is not None:
                self._prepared(held, outcome.error)
            else:
                held.status = ""
                held.contents.update(outcome.value)
                self._get(held)

        self._chores.submit(partial(shared.find, held.run.bundle), looked)

    def _get(self, held: Held) -> None:
        held.is_equipped = held.are_links_placed = False
        attempt = held.attempt

        def equipped(failure: CannotStart | None) -> None:
            if held.attempt != attempt or held.run.stage is not Stage.PREPARING:
                return
            if failure is not None:
                self._prepared(held, failure)
                return
            held.is_equipped = True
            self._consider(held)

        self._runtime.prepare(self.job(held), equipped)
        keys = dict.fromkeys(records.dependency_keys(held.run.bundle))
        held.waits_for = {
            key: partial(self._fetched, held, key) for key in keys if key not in held.contents
        }
        if not keys:
            held.are_links_placed = True
            self._consider(held)
        elif not held.waits_for:
            self._place_links(held)
        for key, done in list(held.waits_for.items()):
            if key in held.waits_for:
                self._cache.request(key, done)

    def withdraw(self, held: Held) -> None:
        """What was begun is not waited for any more."""
        for key, done in held.waits_for.items():
            self._cache.withdraw(key, done)
        held.waits_for.clear()
        self._runtime.withdraw(held.run.key)

    def status(self, held: Held) -> str:
        """What it waits for, for the run's owner; empty when it waits for nothing."""
        fetches = [self._cache.fetches[k] for k in held.waits_for if k in self._cache.fetches]
        return str(fetches[0]) if fetches else self._runtime.status(held.run.key)

    def job(self, held: Held, share: Share | None = None) -> Job:
        """The run as its runtime takes it, on ``share`` or on what it already has."""
        share = share or held.share
        devices = self._settings.devices
        # Also one that asked for no cpu is kept on the worker's.
        cpus = share.cpus or devices.cpus
        return Job(
            key=held.run.key,
            uuid=held.run.uuid,
            command=held.run.bundle["command"],
            place=held.place,
            directory=held.directory,
            cpus=cpus if devices.is_pinned else (),
            gpus=share.gpus if devices.gpus else None,
            read_only=self._cache.contents if held.run.bundle.get("dependencies") else None,
            image=held.run.resources.docker_image,
            contents=_contents(held),
            memory_bytes=held.run.resources.memory_bytes,
            network=held.run.resources.network,
        )

    def _fetched(self, held: Held, key: Key, result: Path | DependencyFailed) -> None:
        if held.waits_for.pop(key, None) is None:
            return
        if isinstance(result, DependencyFailed):
            self._fail(held, str(result))
            return
        held.contents[key] = result
        if not held.waits_for:
            self._place_links(held)

    def _place_links(self, held: Held) -> None:
        contents = _contents(held)
        root = self._runtime.dependency_paths(held.run.uuid)
        shown = {path: root / mount_name(path) for path in contents} if root else None
        attempt = held.attempt

        def done(outcome: Outcome[None]) -> None:
            if held.attempt != attempt or held.run.stage is not Stage.PREPARING:
                return
            if isinstance(outcome.error, OSError | UsageError):
                self._fail(held, f"A dependency cannot be linked: {outcome.error}")
                return
            if outcome.error is not None:
                self._prepared(held, outcome.error)
                return
            held.are_links_placed = True
            self._consider(held)

        self._chores.submit(partial(place_links, held.directory, contents, shown), done)

    def _consider(self, held: Held) -> None:
        if held.is_equipped and held.are_links_placed:
            self._prepared(held, None)

    def _fail(self, held: Held, reason: str) -> None:
        self._prepared(held, CannotStart(reason))


def _contents(held: Held) -> dict[str, Path]:
    """What it depends on, as far as that was fetched, by child path."""
    keyed = {
        dependency["child_path"]: (dependency["parent_uuid"], dependency.get("parent_path") or "")
        for dependency in held.run.bundle.get("dependencies") or ()
    }
    return {path: held.contents[key] for path, key in keyed.items() if key in held.contents}
