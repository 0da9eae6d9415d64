"""Runs bundles as processes of this machine, each in a session of its own.

A small shell script stands between the worker and the command. It waits to be let go, so that
nothing runs that is not on the worker's disk; and it outlives the worker, so that the exit code
is written down even when the worker is not there. What isolates the command, if anything, is a
wrapper's business (worker.runtimes.sandbox).
"""

from __future__ import annotations

import ctypes
import getpass
import logging
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from worker.limits import Usage
from worker.loop import Loop
from worker.runtimes import proc
from worker.runtimes.base import (
    Address,
    Attachment,
    CannotStart,
    End,
    Ended,
    Failed,
    Gone,
    Job,
    Prepared,
)

log = logging.getLogger(__name__)

GONE_SECONDS = 5.0
"""How long killed processes may take to be gone: the kernel's business, mostly microseconds."""
ROUNDS = 50
"""How often what is left of a run is looked for and killed, should it fork faster than that."""

PROBE_SECONDS = 10.0

DOOR = 3
STDERR = 4

SCRIPT = r"""
trap : TERM INT HUP
read -r word <&3 || { echo held >"$1/exit"; exit 125; }
exec 3<&-
if [ -z "$5" ]
then cd "$2" && "$3" -c "$4" 2>&4 4>&-
else cd "$2" && unshare --mount --propagation private "$0" -c \
    'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"; exec "$2" -c "$3" 2>&4 4>&-' \
    run "$5" "$3" "$4"
fi
code=$?
echo $code >"$1/exit"
exit $code
"""
"""Arguments: the private directory, the run's directory, the shell, the command, and a directory
that the run shall see read-only, or nothing. It is one small write to `exit`, which is whole when
it ends in a newline. Its own stderr is not the run's, since shells comment there on signals."""

WRAPPED_SCRIPT = r"""
trap : TERM INT HUP
read -r word <&3 || { echo held >"$1/exit"; exit 125; }
exec 3<&-
place=$1
shift
"$@" 2>"$place/wrapper"
code=$?
echo $code >"$place/exit"
exit $code
"""
"""Arguments: the private directory, and a wrapper's command line. Descriptor 4 is what the command
shall have for stderr; what the wrapper itself says goes to `wrapper`."""

ENTERED = "entered"
"""What a wrapper says there when the command begins: what it said before, it said itself."""
NOT_ENTERED = (1, 126, 127, 255)
"""What a wrapper exits with that cannot begin the command."""

RUN_VARIABLE = "BUNDLE_RUN"
"""In the environment of everything that a run starts: its directory here, by which its strays are
known."""

OOM_SCORE_ADJUSTMENT = b"500"
"""When memory runs out, the kernel shall take a run and not the worker."""

_PR_SET_CHILD_SUBREAPER = 36
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


class Wrapper(Protocol):
    """Puts another program around commands, whose only child becomes their ancestor, and which
    ends when they do."""

    def command_line(self, job: Job, shell: str) -> Sequence[str]:
        """What runs the job's command by ``shell``, with descriptor 4 as its stderr, and writes
        `entered` to its own stderr before that."""

    def dependency_paths(self, uuid: str) -> Path:
        """See worker.runtimes.base.Runtime."""

    def environment(self, job: Job) -> Mapping[str, str]:
        """What is added to the environment."""


@dataclass
class _Command:
    """A command that runs. ``pid`` is that of the script, which leads the session."""

    pid: int
    place: Path
    has_network: bool
    door: int | None = None
    is_child: bool = True
    """False: an earlier worker started it."""
    descriptor: int | None = None
    """Its pidfd, if it is not our child and lives."""
    was_seen: bool = True
    """It has lived under our eyes, so that its pid still names its session."""
    has_ended: bool = False
    known: set[tuple[int, int]] = field(default_factory=set)
    """(pid, start time) of everything that was ever seen below it."""
    ticks: int = 0
    measured: float = 0.0


class ProcessRuntime:
    """See worker.runtimes.base.Runtime for the promises."""

    name = "process"

    def __init__(self, loop: Loop, ended: Ended, wrapper: Wrapper | None = None) -> None:
        self._loop = loop
        self._ended = ended
        self._wrapper = wrapper
        self._commands: dict[str, _Command] = {}
        # Guards _commands, and a process's being started against its not being in there yet.
        self._lock = threading.Lock()
        self._shell = "/bin/sh"
        self._command_shell = shutil.which("bash") or self._shell
        self._user = _user_name()
        self._can_guard = os.geteuid() == 0 and _can_make_mounts()
        _become_subreaper()
        # What our parent had started before it became us (`watchdog & exec bundle-worker`).
        self._foreign = frozenset(proc.children_of(os.getpid()))
        loop.on_signal(signal.SIGCHLD, self._reap)

    # Start

    def dependency_paths(self, uuid: str) -> Path | None:
        return self._wrapper.dependency_paths(uuid) if self._wrapper is not None else None

    def prepare(self, job: Job, done: Prepared) -> None:
        done(None)

    def withdraw(self, key: str) -> None:
        pass

    def status(self, key: str) -> str:
        return ""

    def start(self, job: Job) -> Mapping[str, Any]:
        outside, inside = os.pipe2(os.O_CLOEXEC)
        try:
            temporary = job.place / "tmp"
            temporary.mkdir(mode=0o700, exist_ok=True)
            for left in ("exit", "wrapper"):
                (job.place / left).unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            with self._lock:
                pid = os.posix_spawn(
                    self._shell,
                    self._command_line(job),
                    self._environment(job),
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, outside, DOOR),
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, str(job.directory / "stdout"), flags, 0o644),
                        (os.POSIX_SPAWN_OPEN, STDERR, str(job.directory / "stderr"), flags, 0o644),
                        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP],
                )
                self._commands[job.key] = _Command(pid, job.place, job.network, door=inside)
        except (OSError, ValueError) as error:
            os.close(inside)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotStart(f"The command cannot be started: {reason}") from error
        finally:
            os.close(outside)
        if job.cpus:
            try:
                os.sched_setaffinity(pid, job.cpus)
            except OSError as error:
                log.warning("cannot keep %s on the cpus %s: %s", job.key, job.cpus, error)
        with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb") as file:
            file.write(OOM_SCORE_ADJUSTMENT)
        stat = proc.read_stat(pid)
        return {"pid": pid, "started": stat.started if stat else 0, "boot": proc.boot_id()}

    def release(self, key: str) -> None:
        command = self._commands[key]
        if command.door is not None:
            try:
                os.write(command.door, b"\n")
            except BrokenPipeError:
                pass  # it ended already, which is told otherwise
            finally:
                os.close(command.door)
                command.door = None

    def _command_line(self, job: Job) -> list[str]:
        line = [self._shell, "-c"]
        if self._wrapper is not None:
            wrapped = self._wrapper.command_line(job, self._command_shell)
            return [*line, WRAPPED_SCRIPT, self._shell, str(job.place), *wrapped]
        guarded = str(job.read_only) if job.read_only is not None and self._can_guard else ""
        places = (str(job.place), str(job.directory))
        return [*line, SCRIPT, self._shell, *places, self._command_shell, job.command, guarded]

    def _environment(self, job: Job) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment.setdefault("PATH", os.defpath)
        environment |= {
            "HOME": str(job.directory),
            "USER": self._user,
            "LOGNAME": self._user,
            "SHELL": self._command_shell,
            "TMPDIR": str(job.place / "tmp"),
            "CODALAB": "true",
            "CODALAB_BUNDLE_UUID": job.uuid,
            RUN_VARIABLE: str(job.place),
        }
        if job.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
            # They are numbered as nvidia-smi does; CUDA left alone begins with the fastest.
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        if self._wrapper is not None:
            environment |= self._wrapper.environment(job)
        return environment

    # The end

    def attach(self, job: Job, process: Mapping[str, Any]) -> Attachment:
        command = _Command(
            int(process["pid"]), job.place, job.network, is_child=False, was_seen=False
        )
        with self._lock:
            self._commands[job.key] = command
        descriptor = None
        if process.get("boot") == proc.boot_id():
            descriptor = _open_process(command.pid, int(process["started"]))
        if descriptor is None:
            self._loop.post(lambda: self._end(job.key, command, None))
            return Attachment.ENDED
        command.descriptor, command.was_seen = descriptor, True
        self._loop.watch(descriptor, lambda: self._end(job.key, command, None))
        return Attachment.ALIVE

    def _reap(self) -> None:
        by_pid = {c.pid: (key, c) for key, c in self._commands.items() if c.is_child}
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:  # else an orphan of a run, which came to us
                key, command = by_pid[pid]
                times = (usage.ru_utime, usage.ru_stime)
                self._end(key, command, os.waitstatus_to_exitcode(status), *times)

    def _end(
        self,
        key: str,
        command: _Command,
        status: int | None,
        user_seconds: float = 0.0,
        system_seconds: float = 0.0,
    ) -> None:
        if command.has_ended:
            return
        command.has_ended = True
        if command.descriptor is not None:
            self._loop.unwatch(command.descriptor)
            os.close(command.descriptor)
        if command.door is not None:
            os.close(command.door)
            command.door = None
        self._ended(key, End(_read_exit(command.place, status), user_seconds, system_seconds))

    def stop(self, key: str, *, force: bool) -> None:
        command = self._commands.get(key)
        if command is None or command.has_ended:
            return
        # Not yet reaped, or seen alive by its pidfd: the number is still its own.
        try:
            if command.descriptor is not None:
                signal.pidfd_send_signal(command.descriptor, 0)
            if force or not (command.place / "wrapper").exists():
                os.killpg(command.pid, signal.SIGKILL if force else signal.SIGTERM)
            else:
                _ask_to_end(command.pid)
        except ProcessLookupError:
            pass

    def end_all(self, key: str, place: Path) -> None:
        command = self._commands.get(key)
        deadline = time.monotonic() + GONE_SECONDS
        for _ in range(ROUNDS):
            left = self._strays(key, command, place)
            if not left or time.monotonic() > deadline:
                break
            _kill(left, deadline)
        else:
            left = self._strays(key, command, place)
        if left:
            log.warning("processes of %s do not end: %s", key, sorted(left))

    def _strays(self, key: str, command: _Command | None, place: Path) -> dict[int, int]:
        """pid → start time of what lives of a run whose script has ended.

        Orphans of our own runs came to us, their subreaper, so that there is nothing to search;
        those of an earlier worker's went elsewhere, and all of /proc is looked through.
        """
        mark = f"{RUN_VARIABLE}={place}".encode()
        if command is not None and command.is_child:
            with self._lock:
                children = set(proc.children_of(os.getpid()))
                children -= {c.pid for c in self._commands.values()} | self._foreign
                if not children:
                    return {}
                processes = proc.read_all()
                # To process 1 everybody's orphans come, not only those of runs.
                is_ours = os.getpid() != 1 and all(c.has_ended for c in self._commands.values())
        else:
            processes = proc.read_all()
            children = set(processes)
            is_ours = False
        found = set()
        for pid in children:
            stat = processes.get(pid)
            if stat is None or stat.state == "Z" or pid == os.getpid():
                continue
            if (
                (command is not None and command.was_seen and stat.session == command.pid)
                or (command is not None and (pid, stat.started) in command.known)
                or proc.has_variable(pid, mark)
                # It hides whose it is; but only runs leave orphans here, and no other one runs.
                or (is_ours and not proc.has_variable(pid, f"{RUN_VARIABLE}=".encode()))
            ):
                found.add(pid)
        found = proc.descendants(found, processes)
        return {p: processes[p].started for p in found if processes[p].state != "Z"}

    def address(self, key: str) -> Address:
        command = self._commands.get(key)
        if command is None or command.has_ended:
            raise OSError("it does not run")
        if command.has_network or not (command.place / "wrapper").exists():
            return Address("127.0.0.1")
        for wrapper in proc.children_of(command.pid):
            for inside in proc.children_of(wrapper):
                return Address("127.0.0.1", inside)
        raise OSError("its command is not there yet")

    def sweep(self, keys: Collection[str]) -> None:
        pass  # what runs leave is found when they end

    def forget(self, key: str) -> None:
        with self._lock:
            self._commands.pop(key, None)

    # Usage

    def measure(self) -> Mapping[str, Usage]:
        running = {key: c for key, c in self._commands.items() if not c.has_ended}
        if not running:
            return {}
        processes = proc.read_all()
        now = time.monotonic()
        return {key: self._measure_one(c, processes, now) for key, c in running.items()}

    def _measure_one(self, command: _Command, processes: dict[int, proc.Stat], now: float) -> Usage:
        roots = {command.pid}
        for pid, stat in processes.items():
            if stat.session == command.pid or (pid, stat.started) in command.known:
                roots.add(pid)
        members = [processes[p] for p in proc.descendants(roots, processes) if p in processes]
        command.known = {(stat.pid, stat.started) for stat in members}
        user = sum(stat.user_ticks for stat in members)
        system = sum(stat.system_ticks for stat in members)
        cpus = 0.0
        if command.measured:
            elapsed = max(now - command.measured, 0.01)
            cpus = max(0, user + system - command.ticks) / proc.TICKS_PER_SECOND / elapsed
        command.ticks, command.measured = user + system, now
        return Usage(
            memory_bytes=sum(stat.resident_bytes for stat in members),
            cpus=cpus,
            user_seconds=user / proc.TICKS_PER_SECOND,
            system_seconds=system / proc.TICKS_PER_SECOND,
        )

    def confirm_memory(self, key: str) -> int:
        command = self._commands.get(key)
        if command is None:
            return 0
        return sum(proc.proportional_bytes(pid) for pid, _ in command.known)

    def close(self) -> None:
        for command in self._commands.values():
            if command.descriptor is not None and not command.has_ended:
                self._loop.unwatch(command.descriptor)
                os.close(command.descriptor)
            if command.door is not None:
                os.close(command.door)
        self._commands.clear()


def _read_exit(place: Path, status: int | None) -> int | Gone | Failed:
    try:
        text = (place / "exit").read_text()
    except (OSError, ValueError):
        text = ""
    if text == "held\n":
        return Gone.HELD_BACK
    if text.endswith("\n") and text[:-1].isdigit():
        code = int(text)
        if code in NOT_ENTERED and (reason := _why_not_entered(place)) is not None:
            return Failed(f"The command cannot be started: {reason}")
        return code
    if status is None:
        return Gone.UNKNOWN
    # The script itself was killed, by us or by the run; or it could not write on a full disk.
    return 128 - status if status < 0 else status or 1


def _why_not_entered(place: Path) -> str | None:
    """What a wrapper said that could not begin the command; None if it did, or there was none."""
    try:
        lines = (place / "wrapper").read_text(errors="replace").splitlines()
    except OSError:
        return None
    if ENTERED in lines:
        return None
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("FATAL:").strip()[:500] if said else "nothing says why"


def _open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process, if it lives and is the one that started then."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    stat = proc.read_stat(pid)
    if stat is None or stat.state == "Z" or stat.started != started:
        os.close(descriptor)
        return None
    return descriptor


def _ask_to_end(script: int) -> None:
    """SIGTERM to what a wrapper runs, but not to itself: it would take the others down with it."""
    processes = proc.read_all()
    wrappers = {stat.pid for stat in processes.values() if stat.parent == script}
    for pid in proc.descendants(wrappers, processes) - wrappers:
        stat = processes.get(pid)
        descriptor = _open_process(pid, stat.started) if stat is not None else None
        if descriptor is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            os.close(descriptor)


def _kill(processes: Mapping[int, int], deadline: float) -> None:
    """SIGKILL, and wait until they are gone: by pidfd, so that it hits none of another's."""
    poll = select.poll()
    opened = []
    for pid, started in processes.items():
        descriptor = _open_process(pid, started)
        if descriptor is None:
            continue
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            os.close(descriptor)
            continue
        opened.append(descriptor)
        poll.register(descriptor, select.POLLIN)
    waiting = set(opened)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in opened:
        os.close(descriptor)


def _become_subreaper() -> None:
    """Daemons that a run leaves behind come to this process, where they are found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("daemons of runs may not be found: %s", os.strerror(ctypes.get_errno()))


def _can_make_mounts() -> bool:
    """Whether runs can have mounts of their own. To root, modes alone make nothing read-only."""
    try:
        subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return shutil.which("mount") is not None


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
