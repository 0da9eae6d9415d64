"""systemd's manager of one user's services, as logind would start it for somebody who lingers."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

PROGRAM = Path("/lib/systemd/systemd")
GROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
START_SECONDS = 30.0

# It starts only on a machine that was started by systemd, which this has it believe, alone.
_START = """
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system
for group in {groups}; do
    mkdir "$group" && chown {user} "$group" "$group/cgroup.procs" && echo $$ > "$group/cgroup.procs"
done
exec setpriv --reuid={user} --regid={user} --clear-groups \
    env --ignore-environment HOME={home} XDG_RUNTIME_DIR={runtime} PATH=/usr/bin:/bin \
    {program} --user --unit=basic.target
"""


class UserSystemd:
    """From ``start`` to ``stop``; clients find it by ``env``. Needs root."""

    def __init__(self, user: int, home: Path, directory: Path) -> None:
        self._user = user
        self._home = home
        self._runtime = directory / "runtime"
        roots = [Path(root) for root in GROUPS if Path(root, "cgroup.procs").exists()]
        # Version 2 has one tree; beside version 1, systemd uses these two.
        self._groups = [root / f"tests-{os.getpid()}" for root in roots[:2]]
        self._process: subprocess.Popen[bytes] | None = None
        self.env = {"XDG_RUNTIME_DIR": str(self._runtime)}

    def start(self) -> None:
        self._runtime.mkdir(mode=0o700)
        os.chown(self._runtime, self._user, self._user)
        script = _START.format(
            groups=" ".join(shlex.quote(str(group)) for group in self._groups),
            user=self._user,
            home=shlex.quote(str(self._home)),
            runtime=shlex.quote(str(self._runtime)),
            program=PROGRAM,
        )
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-e", "-c", script], stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not (self._runtime / "systemd" / "private").exists():
            assert self._process.poll() is None, "systemd --user ended"
            assert time.monotonic() < deadline, "systemd --user does not listen"
            time.sleep(0.05)

    def stop(self) -> None:
        """It ends its services first."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=START_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            for group in self._groups:
                for below in sorted(group.rglob("*/"), reverse=True):
                    below.rmdir()
                group.rmdir()
