"""Workers as processes of this machine, which outlive the manager that launched them.

A job is a directory, `<directory>/<launch key>/`, in which a small shell script runs the worker:

    lock      locked, through an inherited descriptor, for as long as the script or its worker
              lives: that, and no process id, says whether a job is alive
    record    what was launched, as JSON, written before the process is started
    process   the script's line of /proc/PID/stat, written by itself
    exit      the worker's exit code, written by the script
    ending    when the job was asked to end, in seconds since the epoch
    swept     there once nothing is left of a worker that was killed for good
    log       what the worker printed
    work/     the worker's files, unless the user wants them elsewhere

Not for what a worker does, and not for processes that this directory does not know.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from backends.base import (
    KEY,
    BackendError,
    Capabilities,
    Context,
    EndCause,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    OutOfCapacity,
    Preview,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)
from backends.resources import resource_options

GRACE_SECONDS = 30.0
"""A job that was asked to end this long ago, and is asked again, is killed."""
ENDED_KEPT_SECONDS = 24 * 3600.0
ENDED_KEPT = 50
"""How many ended jobs are kept at most, and how long: with their logs, for `status` and people."""
LOG_KEPT_BYTES = 1024**2
LIVE_LOG_BYTES = 64 * 1024**2
"""A running worker's log that grew over this is cut to LOG_KEPT_BYTES."""

LOCK_DESCRIPTOR = 9

SCRIPT = r"""#!/bin/sh
# Runs one worker, and leaves word of itself and of the worker's end.
# usage: script DIRECTORY COMMAND…
directory=$1
shift
leave_word() {
    printf '%s\n' "$2" > "$directory/$1.new" && mv -f "$directory/$1.new" "$directory/$1"
}
# The worker is of the same group and gets these itself; this script stays to tell its exit code.
ending=
trap 'ending=yes' TERM INT HUP
read -r stat < "/proc/$$/stat"
leave_word process "$stat"
cd "$directory" || exit 1
deaths=0
code=143
while [ "$deaths" -lt 10 ]; do
    began=$(date +%s)
    [ -z "$ending" ] || break
    # A signal between fork and exec is lost: the file was there before it. So a job that is asked
    # to end while its worker starts does not start it.
    ([ -e "$directory/ending" ] && exit 143; exec "$@")
    code=$?
    # Killed, and not by us: started again over its directory it carries on with its runs.
    [ "$code" -gt 128 ] || break
    deaths=$((deaths + 1))
    [ $(($(date +%s) - began)) -lt 60 ] || deaths=1
done
if [ "$code" -eq 0 ]; then rm -rf "$directory/work"; fi
leave_word exit "$code"
"""


def options() -> list[click.Option]:
    """What one worker offers, as cl-worker-manager names it."""
    return [
        *resource_options(),
    ]


def create(context: Context, settings: Mapping[str, Any]) -> LocalProcess:
    """The backend; ``settings`` concern the worker's command line only."""
    return LocalProcess(context)


class LocalProcess:
    """The jobs of one pool on this machine (see backends.base.Backend for the promises)."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        self._context = context
        self._directory = context.directory
        self._clock = clock

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            launches_per_call=1,
            idempotency=Idempotency.SERVICE,
            ended_listed_seconds=ENDED_KEPT_SECONDS,
            shares_files=True,
            worker_runtime="process",
        )

    @property
    def account(self) -> str | None:
        return None

    @property
    def work_directory(self) -> str:
        prefix = self._context.work_directory_prefix
        if prefix:
            return str(Path(prefix).expanduser().absolute() / KEY)
        return str(self._directory / KEY / "work")

    # Launch

    def check(self) -> list[Finding]:
        subject, remedy = "the home", "give another with --home"
        try:
            self.list_jobs()
        except BackendError as error:
            return [Finding(subject, str(error), error, remedy)]
        place = self._directory
        while not place.exists():
            place = place.parent
        if os.access(place, os.W_OK | os.X_OK):
            return [Finding(subject, f"jobs can be kept in {self._directory}")]
        refusal = Unauthorized(f"{place} cannot be written to")
        return [Finding(subject, str(refusal), refusal, remedy)]

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run:
            return [Preview(shlex.join(request.command)) for request in requests]
        results: list[LaunchResult] = []
        for request in requests:
            try:
                results.append(self._launch(request))
            except BackendError as error:
                results.append(error)
            except OSError as error:
                results.append(_backend_error(error, f"launching {request.key}"))
        # Room is made where it is used up, so that a list never changes anything.
        with suppress(OSError, BackendError):
            self._tidy()
        return results

    def _launch(self, request: LaunchRequest) -> Job:
        environment = {
            **self._context.environment,
            **request.environment,
            **request.secrets,
        }
        if shutil.which(request.argv[0], path=environment.get("PATH")) is None:
            raise Invalid(f"there is no executable {request.argv[0]!r}: see --worker-executable")
        if request.key.pool != self._context.pool:
            raise Invalid(f"{request.key} is not a key of the pool {self._context.pool}")
        place = self._directory / str(request.key)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            started = not _take(lock) or any((place / n).exists() for n in ("process", "exit"))
            if not started:
                record = {
                    "key": str(request.key),
                    "owner": self._context.owner,
                    "argv": request.command,
                    "created": self._clock(),
                }
                _write(place / "record", json.dumps(record))
                _write(place / "script", SCRIPT)
                self._spawn_or_leave_nothing(place, lock, request.command, environment)
        finally:
            os.close(lock)
        job = self._job(place, request.key)
        if job is None:
            raise Unreachable(f"the directory of {request.key} cannot be read: who removes it?")
        return job

    def _spawn_or_leave_nothing(
        self, place: Path, lock: int, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        try:
            self._spawn(place, lock, argv, environment)
        except OSError as error:
            refusal = _backend_error(error, f"launching {place.name}")
            if not isinstance(refusal, Unreachable):
                shutil.rmtree(place, ignore_errors=True)
            raise refusal from error

    def _spawn(
        self, place: Path, lock: int, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", str(place / "script"), str(place), *argv],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(place / "log"), log_flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lock, LOCK_DESCRIPTOR),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
        )

    # List

    def list_jobs(self) -> list[Job]:
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _backend_error(error, "listing the local jobs") from error
        jobs = []
        for name in sorted(names):
            key = LaunchKey.parse(name)
            if key is None or key.pool != self._context.pool:
                continue
            try:
                job = self._job(self._directory / name, key)
            except OSError as error:
                raise _backend_error(error, f"looking at {name}") from error
            if job is not None:
                jobs.append(job)
        return jobs

    def _job(self, place: Path, key: LaunchKey) -> Job | None:
        """The job of a directory; None when nothing was ever started there.

        The lock is looked at before the exit code is read: once it is free, the code is there.
        """
        alive = _is_locked(place / "lock")
        record = _read_record(place / "record")
        if record.get("owner", self._context.owner) != self._context.owner:
            return None
        process = _read(place / "process")
        if not alive and not record and not process:
            return None
        created = record.get("created")
        if not isinstance(created, int | float):
            created = _modified(place / "lock")
        if alive:
            return Job(
                id=str(key),
                key=key,
                worker_id=str(key),
                state=JobState.ACTIVE,
                created=created,
                started=created,
            )
        _reap(process)
        text = _read(place / "exit").strip()
        exit_code = int(text) if text.isdigit() else None
        was_asked = bool(_read(place / "ending"))
        if exit_code is not None:
            why = f"killed by signal {exit_code - 128}" if exit_code > 128 else ""
        elif process:
            why = "killed by force" if was_asked else "its process is gone"
        else:
            why = "never started"
        last = place / ("exit" if exit_code is not None else "process" if process else "record")
        return Job(
            id=str(key),
            key=key,
            worker_id=str(key),
            state=JobState.ENDED,
            created=created,
            started=created if process else None,
            ended=_modified(last),
            exit_code=exit_code,
            why=why,
            cause=_cause(exit_code, was_asked=was_asked, had_process=bool(process)),
        )

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        for job_id in job_ids:
            try:
                self._terminate(job_id)
                results[job_id] = None
            except BackendError as error:
                results[job_id] = error
            except OSError as error:
                results[job_id] = _backend_error(error, f"ending {job_id}")
        return results

    def _terminate(self, job_id: str) -> None:
        place = self._place(job_id)
        if not _is_locked(place / "lock"):
            return
        if _read_record(place / "record").get("owner", self._context.owner) != self._context.owner:
            raise Invalid(f"{job_id} is not a job of this manager")
        pid, start_time = _process(_read(place / "process"))
        if not pid:
            raise Unreachable(f"{job_id} is just starting: ask again")
        group = _group_of(pid, start_time)
        if group is None:
            raise Unreachable(f"no process of {job_id} can be found, though its lock is held")
        asked = _read(place / "ending").strip()
        try:
            forced = self._clock() - float(asked) >= GRACE_SECONDS
        except ValueError:
            forced = False
            _write(place / "ending", str(self._clock()))
        if forced:
            _kill_all(pid, group)
        else:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)

    def _place(self, job_id: str) -> Path:
        key = LaunchKey.parse(job_id)
        if key is None or key.pool != self._context.pool:
            raise Invalid(f"{job_id} is not a job of the pool {self._context.pool}")
        return self._directory / job_id

    # Logs

    def logs(self, job_id: str) -> str:
        path = self._place(job_id) / "log"
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_KEPT_BYTES))
                return file.read(LOG_KEPT_BYTES).decode(errors="replace")
        except FileNotFoundError:
            raise Invalid(f"there is no job {job_id}") from None
        except OSError as error:
            raise _backend_error(error, f"reading the log of {job_id}") from error

    def _tidy(self) -> None:
        """Forget old ended jobs, and keep the logs of the others within their bounds."""
        ended = []
        for job in self.list_jobs():
            log = self._directory / job.id / "log"
            if job.state is not JobState.ENDED:
                _shorten(log, above_bytes=LIVE_LOG_BYTES)
                continue
            ended.append(job)
            _shorten(log, above_bytes=LOG_KEPT_BYTES)
            self._sweep(job)
        ended.sort(key=lambda job: job.ended or 0.0, reverse=True)
        oldest = self._clock() - ENDED_KEPT_SECONDS
        for number, job in enumerate(ended):
            if number >= ENDED_KEPT or (job.ended or 0.0) < oldest:
                shutil.rmtree(self._directory / job.id, ignore_errors=True)

    def _sweep(self, job: Job) -> None:
        """End what a worker that died of a signal for good has left running.

        What it runs has a home directory in the job's own place; no one else's process has.
        """
        place = self._directory / job.id
        died = job.exit_code is None or job.exit_code > 128
        if not died or job.key is None or (place / "swept").exists():
            return
        import psutil

        homes = f"{self.work_directory.replace(KEY, str(job.key))}/"
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME", "").startswith(homes):
                    process.kill()
        _write(place / "swept", "")


_LOCK = "hhqqi4x"
"""struct flock: type, whence, start, length, pid."""


def _cause(exit_code: int | None, *, was_asked: bool, had_process: bool) -> EndCause:
    if exit_code == 0:
        return EndCause.FINISHED
    if was_asked:
        return EndCause.KILLED_BY_US
    if exit_code is None:
        return EndCause.KILLED_BY_OTHERS if had_process else EndCause.UNKNOWN
    return EndCause.KILLED_BY_OTHERS if exit_code > 128 else EndCause.FAILED


def _take(descriptor: int) -> bool:
    """Lock an open file for whoever holds the descriptor; False when another has it."""
    wanted = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_locked(path: Path) -> bool:
    """Whether anyone holds the lock of a file. Asks without locking: nobody else notices."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        wanted = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_LOCK, answer)[0] != fcntl.F_UNLCK)


def _process(stat: str) -> tuple[int, int]:
    """Process id and start time (clock ticks) of a line of /proc/PID/stat; zeros if torn.

    The second field is the program's name, in brackets, and may hold anything (proc(5)).
    """
    before, _, after = stat.rpartition(")")
    fields = after.split()
    pid = before.split(" ", 1)[0]
    if len(fields) < 20 or not pid.isdigit() or not fields[19].isdigit():
        return 0, 0
    return int(pid), int(fields[19])


def _reap(stat: str) -> None:
    """Let go of an ended script, in case it is this process's child: else it stays a zombie."""
    pid, _ = _process(stat)
    if pid:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _group_of(pid: int, start_time: int) -> int | None:
    """The process group that the script ``pid`` leads, if it still is that one.

    Without the script its group is that of the worker, which keeps the number taken (the kernel
    gives no pid that is a group's).
    """
    stat = _read(Path(f"/proc/{pid}/stat"))
    if stat:
        return pid if _process(stat) == (pid, start_time) else None
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _read(Path(f"/proc/{entry}/stat")).rpartition(")")[2].split()
            if len(fields) > 3 and fields[2] == str(pid):
                return pid
    return None


def _kill_all(pid: int, group: int) -> None:
    """Kill a job's group and all that descends from it: runs have sessions of their own."""
    import psutil

    descendants: list[psutil.Process] = []
    with suppress(psutil.Error):
        descendants = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for process in descendants:
        with suppress(psutil.Error):
            process.kill()


def _write(path: Path, text: str) -> None:
    """Put a file in place whole. Not synced: a power cut ends the process it speaks of, too."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)


def _read(path: Path) -> str:
    """The text of a small file, "" when there is none."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return ""


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a job, {} when there is none or it is torn."""
    try:
        record = json.loads(_read(path) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _shorten(log: Path, *, above_bytes: int) -> None:
    """Cut a log to its last LOG_KEPT_BYTES when it is longer than ``above_bytes``.

    In place: the worker goes on appending to the same file.
    """
    with suppress(OSError):
        if log.stat().st_size <= above_bytes:
            return
        with log.open("r+b") as file:
            file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.write(tail)
            file.truncate()


def _backend_error(error: OSError, doing: str) -> BackendError:
    """The error of the taxonomy that stands for what the operating system said."""
    sentence = f"{doing} failed: {error.strerror or error}"
    if error.filename:
        sentence += f" ({error.filename})"
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        return OutOfCapacity(sentence)
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(sentence)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unauthorized(sentence)
    if error.errno in (errno.ENAMETOOLONG, errno.E2BIG, errno.ENOTDIR):
        return Invalid(sentence)
    return Unreachable(sentence)
