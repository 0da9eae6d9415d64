"""One bundle run by hand (`bundle-worker --once`): a copy of it, of which the server hears nothing.

So it may be tried in any state, also while another worker runs it, and as often as it takes. The
stages are those of every run, but for the upload: what the command wrote is removed at the end.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO

from bundles.client import Client
from bundles.errors import NotFound, UsageError
from bundles.exits import WorkerExit
from bundles.model import Bundle
from worker.clock import SteadyClock
from worker.held import Held
from worker.loop import Loop
from worker.messages import RunMessage, read_message
from worker.runs import Runs, RuntimeFactory
from worker.settings import Settings
from worker.stages import Finalized, KillRequested, NotStarted, Run, Stage
from worker.trees import remove_tree

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often what the command has written is shown."""
LAST_SECONDS = 10.0
"""How long the end of the command is waited for after a second signal, or a fault of ours."""
CHUNK_BYTES = 64 * 1024
CLAIM = 0
"""None that a server ever gave out."""


class ReadingClient(Client):
    """One that takes from a server and tells it nothing."""

    def upload(self, *arguments: object, **options: object) -> None:
        """The results stay here."""


class Rehearsal:
    """The whole life of one run. Stages and errors go to the log, the command's output to ours."""

    def __init__(
        self,
        settings: Settings,
        client: ReadingClient,
        loop: Loop,
        make_runtime: RuntimeFactory,
        *,
        clock: SteadyClock,
    ) -> None:
        self._settings = settings
        self._client = client
        self._loop = loop
        self._now = clock
        self._runs = Runs(settings, client, loop, make_runtime, self, self._ended, now=clock)
        self._runs.heard()  # it asks as a reader of bundles, and no server needs to know of it
        self._held: Held | None = None
        self._exit = WorkerExit.FAILED
        self._is_asked = False
        self._told = ""
        self._shown = {"stdout": 0, "stderr": 0}

    def run(self, uuid: str) -> WorkerExit:
        """FINISHED when the command succeeds. Raises UsageError, and what a client does."""
        message = self._find(uuid)
        self._clear(f"{uuid}-{CLAIM}")
        run = Run(uuid, CLAIM, message.bundle, message.resources, accepted=self._now())
        held = self._held = self._runs.accept(run)
        if message.fault is not None:
            self._runs.apply(held, NotStarted(message.fault))
        else:
            self._runs.prepare(held)
        self._look_again()
        self._loop.run(self._stumbled)
        self._runs.runtime.close()
        return self._exit

    @property
    def holds_runs(self) -> bool:
        return bool(self._runs.held)

    def terminate(self) -> None:
        """A signal: the run is killed. After the second one that is not waited for much longer."""
        assert self._held is not None
        if self._is_asked:
            self._loop.call_later(LAST_SECONDS, self._loop.stop)
            return
        self._is_asked = True
        self._exit = WorkerExit.TERMINATED
        self._runs.apply(self._held, KillRequested())

    # What a worker would report (worker.runs.Messenger)

    def now(self) -> None:
        self._loop.post(self._look)

    soon = refresh = now

    def _find(self, uuid: str) -> RunMessage:
        found = self._client.search([f"uuid={uuid}", ".limit=1"])
        if not found:
            raise NotFound(f"there is no bundle {uuid} at {self._client.server}")
        [bundle] = found
        if bundle.bundle_type != "run":
            raise UsageError(f"{uuid} is a {bundle.bundle_type}: only runs can be run")
        resources, devices = bundle.resources, self._settings.devices
        if resources.cpus > len(devices.cpus) or resources.gpus > len(devices.gpus):
            raise UsageError(
                f"{uuid} asks for {resources.cpus} cpus and {resources.gpus} gpus, and "
                f"{len(devices.cpus)} and {len(devices.gpus)} are offered here"
            )
        message = read_message(run_message(bundle))
        assert isinstance(message, RunMessage)
        return message

    def _clear(self, key: str) -> None:
        """What a rehearsal that was killed has left. Raises UsageError for what is not one's."""
        for place in self._settings.runs_directory.iterdir():
            if place.name != key:
                raise UsageError(
                    f"worker {self._settings.worker_id} has runs of its own: give another --id"
                )
            self._runs.runtime.end_all(key, place)
            remove_tree(place)
        self._runs.runtime.sweep([])

    def _look_again(self) -> None:
        self._look()
        self._loop.call_later(LOOK_SECONDS, self._look_again)

    def _look(self) -> None:
        held = self._held
        if held is None or held.run.stage is Stage.FINISHED:
            return
        waiting = held.status or self._runs.waiting_for(held)
        stage = held.run.stage.replace("_", " ").capitalize()
        said = f"{stage}: {waiting}" if waiting else stage
        if said != self._told and held.run.stage in _SHOWN:
            self._told = said
            log.info("%s", said)
        self._show("stdout", sys.stdout.buffer)
        self._show("stderr", sys.stderr.buffer)
        if held.run.stage in (Stage.FINALIZING, Stage.RESTAGED):
            self._conclude(held)

    def _conclude(self, held: Held) -> None:
        run = held.run
        if run.failure_message is not None:
            log.error("Failed: %s", run.failure_message)
        elif run.exitcode is None:
            log.error("Failed: its processes vanished")
        else:
            log.info("Exit code %d", run.exitcode)
            if run.exitcode == 0:
                self._exit = WorkerExit.FINISHED
        if self._is_asked:
            self._exit = WorkerExit.TERMINATED
        self._runs.apply(held, Finalized())

    def _show(self, name: str, stream: BinaryIO) -> None:
        """Write what is new in a file of the run to a stream of ours."""
        assert self._held is not None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._held.directory / name, flags)
        except OSError:  # not there yet, or made into something else by the command
            return
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return
            file.seek(self._shown[name])
            try:
                for chunk in iter(partial(file.read, CHUNK_BYTES), b""):
                    stream.write(chunk)
                stream.flush()
            except BrokenPipeError:
                # Who reads has left, such as `head`: that ends the command, as in any pipe.
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())
                if not self._is_asked:
                    self.terminate()
            self._shown[name] = file.tell()

    def _ended(self) -> None:
        self._loop.stop()

    def _stumbled(self, error: Exception) -> None:
        log.error("something unforeseen happened", exc_info=error)
        assert self._held is not None
        self._runs.stumbled(self._held, error)
        self._loop.call_later(LAST_SECONDS, self._loop.stop)


_SHOWN = (Stage.PREPARING, Stage.RUNNING, Stage.CLEANING_UP)


def run_message(bundle: Bundle) -> Mapping[str, Any]:
    """What a server would send to a worker for this bundle."""
    return {
        "type": "run",
        "uuid": bundle.uuid,
        "claim": CLAIM,
        "bundle": {
            "uuid": bundle.uuid,
            "bundle_type": bundle.bundle_type,
            "command": bundle.command,
            "metadata": dict(bundle.metadata),
            "dependencies": [dependency.to_document() for dependency in bundle.dependencies],
        },
        "resources": bundle.resources.to_run_message(),
    }
