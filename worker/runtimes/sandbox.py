"""Confines runs of the process runtime by bubblewrap: what they see, and what they can reach.

A run sees the system read-only, its own directory, what it depends on, and a /tmp and processes of
its own; nothing of its worker, of other runs, or of anybody's home. Starts nothing itself, but for
the probe whether this machine lets it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.runtimes.base import Job, mount_name
from worker.runtimes.process import ENTERED, STDERR

PROBE_SECONDS = 10.0

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt"),
    *("/nix", "/gnu", "/cvmfs", "/sys/bus", "/sys/class", "/sys/dev", "/sys/devices"),
)
"""Where programs lie, and what configures them."""

INSIDE = f'echo {ENTERED} >&2; "$1" -c "$2" 2>&{STDERR} {STDERR}>&-; exit $?'
"""Runs as process 1, so that nothing of the run outlives it. Arguments: a shell, the command."""


class NoSandbox(Exception):
    """Runs cannot be confined here; the message says why."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A worker.runtimes.process.Wrapper. ``arguments``: the command line of bubblewrap, as far as
    it is the same for all runs; ``later``: what comes after a run's own /tmp, because it may lie
    in there."""

    arguments: tuple[str, ...]
    later: tuple[str, ...]

    def dependency_paths(self, uuid: str) -> Path:
        return Path(f"/{uuid}_dependencies")

    def environment(self, job: Job) -> Mapping[str, str]:
        return {"HOME": f"/{job.uuid}", "TMPDIR": "/tmp"}

    def command_line(self, job: Job, shell: str) -> list[str]:
        line = [*self.arguments]
        if not job.network:
            line.append("--unshare-net")
        if job.gpus:
            for device in sorted(Path("/dev").glob("nvidia*")):
                line += ["--dev-bind", str(device), str(device)]
        line += ["--bind", str(job.place / "tmp"), "/tmp", "--symlink", "/tmp", "/var/tmp"]
        line += self.later
        line += ["--bind", str(job.directory), f"/{job.uuid}"]
        root = self.dependency_paths(job.uuid)
        for path, content in job.contents.items():
            line += ["--ro-bind", str(content), f"{root}/{mount_name(path)}"]
        # What is nobody's mount is a file system of its own: nothing shall be lost in there.
        line += ["--remount-ro", "/", "--chdir", f"/{job.uuid}"]
        return [*line, "--", "/bin/sh", "-c", INSIDE, "sh", shell, job.command]


def find_sandbox(hidden: Collection[Path]) -> Sandbox:
    """The sandbox of this machine. ``hidden``: directories and files that no run shall see, should
    they lie where the system does. Raises NoSandbox."""
    program = shutil.which("bwrap")
    if program is None:
        raise NoSandbox("there is no bwrap on PATH: install bubblewrap")
    sandbox = Sandbox(*_common_arguments(program, hidden))
    with tempfile.TemporaryDirectory(prefix="bundle-worker-") as name:
        place = Path(name)
        (place / "tmp").mkdir()
        probe = Job("probe", "probe", "true", place, place, network=False)
        try:
            done = subprocess.run(
                sandbox.command_line(probe, "/bin/sh"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoSandbox(f"{program} does not run: {error}") from error
    lines = done.stderr.decode(errors="replace").splitlines()
    if ENTERED not in lines:
        raise NoSandbox(lines[-1] if lines else f"{program} ends with {done.returncode}")
    return sandbox


def _common_arguments(
    program: str, hidden: Collection[Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    line = [program, "--unshare-pid", "--as-pid-1", "--die-with-parent"]
    # To root it leaves all that root may do, unless told otherwise.
    line += ["--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    shown = []
    for name in SYSTEM:
        path = Path(name)
        if path.is_symlink():
            line += ["--symlink", os.readlink(path), name]
        elif path.is_dir() and any(path.iterdir()):
            line += ["--ro-bind", name, name]
            shown.append(path)
    later: list[str] = []
    # Bundles may be queued with the worker's own interpreter in them, wherever that is installed.
    for prefix in (sys.base_prefix, sys.prefix):
        for name in dict.fromkeys((prefix, os.path.realpath(prefix))):
            if name != "/" and not _is_in(Path(name), shown):
                later += ["--ro-bind", name, name]
                shown.append(Path(name))
    resolver = Path(os.path.realpath("/etc/resolv.conf"))
    if resolver.exists() and not _is_in(resolver, shown):
        line += ["--ro-bind", str(resolver), str(resolver)]
    secret = [path for path in map(Path, map(os.path.realpath, hidden)) if _is_in(path, shown)]
    for path in dict.fromkeys([*secret, *_private_paths("/etc")]):
        if path.is_dir():
            later += ["--tmpfs", str(path), "--remount-ro", str(path)]
        elif path.exists():
            later += ["--ro-bind", "/dev/null", str(path)]
    return tuple(line), tuple(later)


def _is_in(path: Path, directories: Sequence[Path]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)


def _private_paths(directory: str) -> list[Path]:
    """What in there this user may read, and not everybody: keys and passwords of the machine, and
    of whoever is known by this user."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except OSError:
                continue
            if stat.S_ISDIR(mode):
                wanted = stat.S_IROTH | stat.S_IXOTH
            elif stat.S_ISREG(mode):
                wanted = stat.S_IROTH
            else:
                continue
            if mode & wanted != wanted:
                if os.access(entry.path, os.R_OK):
                    found.append(Path(entry.path))
            elif stat.S_ISDIR(mode):
                found += _private_paths(entry.path)
    return found
