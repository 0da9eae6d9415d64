"""The launches of one pool: a directory each, with what was submitted and what became of it.

    <first key>/     one sbatch, one array
      record         what was meant: owner, first key, number, job name; written before the call
      script         what every element runs
      command        the words of sbatch
      secrets        the workers' credentials, mode 0600; removed when the last element ended
      job            the array's id, as sbatch told it or squeue did
      I.log          what the worker of the element with index I printed
      I.start        the array's id and the node, written by the script as it starts
      I.exit         the worker's exit code, and whether it was asked to leave before its time limit
      I.ending       there once we asked the element to end
    work/<key>/      a worker's files, unless the user wants them elsewhere

Reading changes nothing. Not for what Slurm says: jobs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backends.base import KEY, LaunchKey
from backends.slurm.jobs import Evidence, Mark
from backends.slurm.script import SCRIPT_NAME, SECRETS_NAME

WORK = "work"
LOG_KEPT_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: ``array`` is None while it is not known whether there is one."""

    place: Path
    mark: Mark
    intended: float
    job_name: str
    array: int | None

    def __contains__(self, key: LaunchKey) -> bool:
        first = self.mark.first
        return (key.pool, key.random) == (
            first.pool,
            first.random,
        ) and 0 <= key.sequence - first.sequence < self.mark.number

    def index(self, key: LaunchKey) -> int:
        return key.sequence - self.mark.first.sequence

    def evidence(self) -> dict[int, Evidence]:
        """What is known of each element that left any."""
        found: dict[int, dict[str, Path]] = {}
        for entry in os.scandir(self.place):
            index, _, kind = entry.name.partition(".")
            if index.isdigit() and kind in ("start", "exit", "ending"):
                found.setdefault(int(index), {})[kind] = Path(entry.path)
        return {index: _evidence(paths) for index, paths in found.items()}

    def log(self, index: int) -> str:
        """The last of what the worker printed. Raises OSError; "" when it has not started."""
        try:
            with (self.place / f"{index}.log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_KEPT_BYTES))
                return file.read(LOG_KEPT_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""


class Launches:
    """All launches of one pool and owner, below one directory. Methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def work_directory(self) -> str:
        """Of a worker, with KEY in it."""
        return str(self.directory / WORK / KEY)

    def read(self, owner: str, pool: str) -> list[Launch]:
        """Those of that owner and pool, oldest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        found = [launch for name in names if (launch := self._read(name, owner, pool))]
        return sorted(found, key=lambda launch: launch.mark.first.sequence)

    def _read(self, name: str, owner: str, pool: str) -> Launch | None:
        first = LaunchKey.parse(name)
        if first is None or first.pool != pool:
            return None
        place = self.directory / name
        try:
            record = json.loads((place / "record").read_text())
            mark = Mark(record["owner"], pool, first, int(record["number"]))
            launch = Launch(place, mark, float(record["intended"]), record["job_name"], None)
        except (FileNotFoundError, NotADirectoryError):
            return None  # being made, or being removed
        except (ValueError, KeyError, TypeError):
            return None  # torn by a power cut: nothing was submitted before it was whole
        if mark.owner != owner:
            return None
        return Launch(place, mark, launch.intended, launch.job_name, _array(place))

    def intend(
        self,
        mark: Mark,
        words: Sequence[str],
        script: str,
        secrets: str,
        *,
        job_name: str,
        intended: float,
    ) -> Launch:
        """Write down what is about to be submitted. The record comes last and says all is there."""
        place = self.place(mark.first)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / WORK).mkdir(mode=0o700, exist_ok=True)
        _write(place / SCRIPT_NAME, script)
        _write(place / "command", shlex.join(words) + "\n")
        if secrets:
            _write(place / SECRETS_NAME, secrets)
        record = {
            "owner": mark.owner,
            "number": mark.number,
            "intended": intended,
            "job_name": job_name,
        }
        _write(place / "record", json.dumps(record))
        return Launch(place, mark, intended, job_name, None)

    def place(self, first: LaunchKey) -> Path:
        return self.directory / str(first)

    def learn(self, launch: Launch, array: int) -> None:
        """The array's id is known."""
        _write(launch.place / "job", f"{array}\n")

    def ask_to_end(self, launch: Launch, index: int) -> None:
        (launch.place / f"{index}.ending").touch(mode=0o600)

    def forget_secrets(self, launch: Launch) -> None:
        (launch.place / SECRETS_NAME).unlink(missing_ok=True)

    def forget(self, launch: Launch) -> None:
        """Remove it, and the files that its workers left."""
        for index in range(launch.mark.number):
            shutil.rmtree(self.directory / WORK / str(launch.mark.key(index)), ignore_errors=True)
        shutil.rmtree(launch.place, ignore_errors=True)


def _evidence(paths: dict[str, Path]) -> Evidence:
    array, node = _words(paths.get("start"))
    code, warned = _words(paths.get("exit"))
    return Evidence(
        array=int(array) if array.isdigit() else None,
        node=node,
        started=_modified(paths.get("start")),
        ended=_modified(paths.get("exit")),
        exit_code=int(code) if code.isdigit() else None,
        was_warned=warned == "yes",
        was_asked="ending" in paths,
    )


def _array(place: Path) -> int | None:
    """The id that was written down, else the one that an element's script has left."""
    with suppress(FileNotFoundError, ValueError):
        return int((place / "job").read_text())
    for path in place.glob("*.start"):
        array, _ = _words(path)
        if array.isdigit():
            return int(array)
    return None


def _words(path: Path | None) -> tuple[str, str]:
    """The first two words of a small file, "" for each that is not there."""
    if path is None:
        return "", ""
    try:
        words = path.read_text(errors="replace").split()
    except FileNotFoundError:
        return "", ""
    return (words[0] if words else ""), (words[1] if len(words) > 1 else "")


def _modified(path: Path | None) -> float | None:
    if path is None:
        return None
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Put a file in place whole, for its owner alone, before anything that relies on it happens."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
