"""Local processes keep the promises that every backend keeps."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from managing import PATIENCE_SECONDS

from backends import local_process
from backends.base import Backend, Context, Job
from backends.conformance import Circumstance, Conformance, Harness, leave_word, stand_in


class LocalProcesses(Harness):
    """This machine, and what its operating system may answer."""

    impossible: ClassVar = {
        Circumstance.COUNTED: "there is no socket and no tool between us and the processes",
        Circumstance.SHARED: "every manager keeps its jobs in a directory of its own",
        Circumstance.PREEMPTED: "nobody takes this machine back",
        Circumstance.HELD: "a process that was made runs",
        Circumstance.THROTTLED: "no operating system asks to be called less often",
        Circumstance.BRIEFLY_THROTTLED: "no operating system asks to be called less often",
        Circumstance.HANGING: "no call waits for another party",
    }

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._words = directory / "words"
        self._words.mkdir()
        self._patch = patch
        self.worker = stand_in(self._words)
        self._strangers: dict[str, psutil.Popen] = {}

    def backend(self, context: Context) -> Backend:
        return local_process.create(context, {})

    def finish(self, job: Job, exit_code: int) -> None:
        leave_word(self._words, job.key, exit_code)

    def kill(self, job: Job) -> None:
        """The whole session: a worker alone would be started again."""
        process = next(self._directory.rglob(f"{job.id}/process"))
        os.killpg(int(process.read_text().split()[0]), signal.SIGKILL)

    def preempt(self, job: Job) -> None:
        raise NotImplementedError

    @contextmanager
    def during(self, circumstance: Circumstance) -> Iterator[None]:
        with self._patch.context() as patch:
            match circumstance:
                case Circumstance.REPLY_LOST:
                    patch.setattr(os, "posix_spawn", _then(os.posix_spawn, errno.EIO))
                case Circumstance.OUT_OF_CAPACITY:
                    patch.setattr(os, "posix_spawn", _refusing(errno.EAGAIN))
                case Circumstance.QUOTA_EXCEEDED:
                    patch.setattr(Path, "mkdir", _refusing(errno.EDQUOT))
                case Circumstance.UNAUTHORIZED:
                    _refuse_everything(patch, errno.EACCES)
                case Circumstance.UNREACHABLE:
                    _refuse_everything(patch, errno.EIO)
                case Circumstance.LIST_TORN:
                    patch.setattr(local_process, "_is_locked", _once(local_process._is_locked))
                case _:
                    raise NotImplementedError(circumstance)
            yield

    def plant_neighbours(self, context: Context) -> list[str]:
        """A directory of a pool's name that is no job's, and a process that names it."""
        place = context.directory / f"{context.pool}-by-hand"
        place.mkdir(parents=True)
        stranger = psutil.Popen(
            ["/bin/sh", "-c", "sleep 1000 & wait", str(place)], start_new_session=True
        )
        self._strangers[place.name] = stranger
        return [place.name]

    def is_untouched(self, job_id: str) -> bool:
        return bool(self._strangers[job_id].poll() is None)

    def calls(self) -> int:
        return 0

    def sent(self) -> str:
        return ""

    def close(self) -> None:
        """Every child of ours leads a session of its own."""
        for child in psutil.Process().children():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            with suppress(psutil.Error):
                child.kill()
        for stranger in self._strangers.values():
            stranger.wait(timeout=PATIENCE_SECONDS)
        psutil.wait_procs(psutil.Process().children(), timeout=PATIENCE_SECONDS)


def _refusing(number: int) -> Callable[..., Any]:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _then(real: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Does it, and says that it failed."""

    def do_and_refuse(*arguments: object, **more: object) -> None:
        real(*arguments, **more)
        _refusing(number)()

    return do_and_refuse


def _once(real: Callable[..., Any]) -> Callable[..., Any]:
    """Works the first time, and fails after."""
    asked: list[object] = []

    def maybe(*arguments: object) -> Any:
        asked.append(arguments)
        return real(*arguments) if len(asked) == 1 else _refusing(errno.EIO)()

    return maybe


def _refuse_everything(patch: pytest.MonkeyPatch, number: int) -> None:
    for owner, name in ((os, "listdir"), (os, "posix_spawn"), (os, "killpg"), (Path, "mkdir")):
        patch.setattr(owner, name, _refusing(number))
    patch.setattr(Path, "open", _refusing(number))


class TestLocalProcess(Conformance):
    @pytest.fixture
    def harness(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalProcesses]:
        made = LocalProcesses(tmp_path, monkeypatch)
        try:
            yield made
        finally:
            made.close()
