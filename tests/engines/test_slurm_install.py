"""deploy/slurm/install, by a user of no rights, on a real cluster. Cron is a stand-in for it, whose
lines the test runs as cron would."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from managing import Managers, eventually
from own_wheel import ROOT, VERSION, copy_dependencies, copy_python, make_wheel
from serving import Server
from slurm_cluster import SlurmCluster
from user_systemd import UserSystemd

pytestmark = [pytest.mark.engine("slurm"), pytest.mark.timeout(600)]

BUNDLES = 60
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
COMMAND_SECONDS = 120.0
LONG_LOG_BYTES = 10_000_001
"""More than a log is let grow to."""
WAITS = "mkdir in; while [ ! -e in/go ]; do sleep 0.1; done; echo hi >> said"

# One table, in a file.
CRONTAB = """
case $1 in
    -l) [ -e {table} ] || {{ echo "no crontab for $LOGNAME" >&2; exit 1; }}; cat {table} ;;
    -r) rm {table} ;;
    -) cat > {table} ;;
esac
"""


class Account:
    """A user's home on a login node of the cluster. ``close`` ends what runs in it."""

    def __init__(self, cluster: SlurmCluster, machine: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="account-"))
        self.directory.chmod(0o755)
        self.home = self.directory / "home"
        self.home.symlink_to("export", target_is_directory=True)  # as an automounter does
        self.prefix = self.home / ".worker-manager"
        self.table = self.directory / "spool" / "crontab"
        self._of_cron: list[subprocess.Popen[bytes]] = []
        self.wheel = next(machine.glob("*.whl"))
        self.script = str(machine / "deploy/slurm/install")
        self.module = machine / "module"
        for place in (self.home.resolve(), self.table.parent):
            place.mkdir(mode=0o700)
            os.chown(place, NOBODY, NOBODY)
        self.program("crontab", CRONTAB.format(table=self.table))
        self.env = {
            "HOME": str(self.home),
            "LOGNAME": "nobody",
            "PATH": f"{self.directory}:{machine}/python/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PIP_NO_INDEX": "1",
            **cluster.reach,
        }

    def program(self, name: str, script: str) -> None:
        """A stand-in on the user's PATH."""
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def install(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.script, *words, **variables)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AS_NOBODY, *command],
            env=self.env | variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def cron(self, when: str) -> subprocess.Popen[bytes]:
        """What cron runs then, in cron's own environment."""
        (line,) = (x for x in self.table.read_text().splitlines() if x.startswith(f"{when} "))
        started = subprocess.Popen(
            [*AS_NOBODY, "/bin/sh", "-c", line.removeprefix(f"{when} ")],
            env={"HOME": str(self.home), "LOGNAME": "nobody", "PATH": "/usr/bin:/bin"},
            cwd=self.home,
            start_new_session=True,
        )
        self._of_cron.append(started)
        return started

    def processes(self, *words: str) -> list[psutil.Process]:
        """The living processes of this user that name their directory, with these words."""
        found = []
        for process in psutil.process_iter(["cmdline", "uids", "status"]):
            line = process.info["cmdline"] or []
            if (
                process.info["uids"].real == NOBODY
                and process.info["status"] != psutil.STATUS_ZOMBIE
                and any(str(self.directory) in word for word in line)
                and all(word in line for word in words)
            ):
                found.append(process)
        return found

    def installed(self) -> list[Path]:
        return sorted([*self.prefix.iterdir(), *self.prefix.glob("versions/*/*")])

    def manager(self) -> psutil.Process | None:
        return next(iter(self.processes("run", str(self.prefix / "pools.toml"))), None)

    def close(self) -> None:
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=COMMAND_SECONDS)
        for process in self._of_cron:
            process.wait()
        shutil.rmtree(self.directory)


class Login:
    """A session of the user at a terminal, which goes on after its command until it is logged out:
    then nothing that belongs to it lives."""

    def __init__(self, account: Account, *command: str, token: str) -> None:
        self._session, self._terminal = pty.fork()
        if self._session == 0:
            try:
                os.chdir("/")
                shell = f'{" ".join(command)}; echo "exit code $?"; exec sleep 1000'
                os.execvpe(
                    AS_NOBODY[0],
                    [*AS_NOBODY, "sh", "-c", shell],
                    account.env | {"WORKER_MANAGER_TOKEN": token},
                )
            finally:
                os._exit(127)
        self.said = ""

    def exit_code(self) -> int:
        """Of the command, once it has ended."""
        while (found := re.search(r"exit code (\d+)", self.said)) is None:
            self.said += os.read(self._terminal, 4096).decode()
        return int(found[1])

    def log_out(self) -> None:
        os.close(self._terminal)  # the kernel sends SIGHUP
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self._session:
                    process.kill()
        os.waitpid(self._session, 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start("--worker-timeout-seconds", "10")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    try:
        yield slurm_cluster
    finally:
        slurm_cluster.clear()


def hide_library(program: Path) -> None:
    """Where the program does not look for it, under a name that no system has."""
    library = program.parents[1] / "lib" / f"lib{VERSION}.so.1.0"
    place = program.parents[1] / "libraries" / library.name.replace("libpython", "libmodule")
    place.parent.mkdir()
    library.rename(place)
    content = program.read_bytes()
    program.write_bytes(content.replace(library.name.encode(), place.name.encode()))


@pytest.fixture(scope="module")
def machine() -> Iterator[Path]:
    """What every user finds on the login node: a Python, one that a module has, which does not
    start without LD_LIBRARY_PATH, this tree's wheel, the script."""
    directory = Path(tempfile.mkdtemp(prefix="machine-"))
    directory.chmod(0o755)
    try:
        copy_python(directory / "python")
        hide_library(copy_python(directory / "module"))
        copy_dependencies(directory / "dependencies")
        make_wheel(directory, directory / "dependencies")
        shutil.copytree(ROOT / "deploy", directory / "deploy")
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def account(cluster: SlurmCluster, machine: Path) -> Iterator[Account]:
    made = Account(cluster, machine)
    try:
        yield made
    finally:
        made.close()


def test_a_user_without_rights_installs_drains_upgrades_and_leaves_nothing(
    server: Server, cluster: SlurmCluster, account: Account
) -> None:
    managers = Managers(server)
    token = server.home.token_path.read_text().strip()
    with server.client() as client:

        def states(*uuids: str) -> Counter[str]:
            found = client.search([f"uuid={','.join(uuids)}", ".limit=100"])
            return Counter(bundle.state for bundle in found)

        def said(uuid: str) -> bytes:
            with client.download(uuid, "said") as content:
                return b"".join(content.chunks())

        # Installed in one session, and drained though that has ended.
        uuids = managers.stage(BUNDLES, command="sleep 0.1; echo hi >> said")
        begun = time.monotonic()
        login = Login(
            account,
            *(account.script, "--from", str(account.wheel)),
            *("--", "--non-interactive", "--server", server.url, "--min", "0", "--max", "3"),
            *("--memory-mb", "2500", "--worker-idle-seconds", "2", "--sleep-time", "0.5"),
            token=token,
        )
        assert login.exit_code() == 0, login.said
        eventually(lambda: states(*uuids)["running"], "the first worker")
        print(f"the first worker after {time.monotonic() - begun:.0f} s")
        login.log_out()
        eventually(lambda: states(*uuids) == {"ready": BUNDLES}, "all of the bundles")
        assert {said(uuid) for uuid in uuids} == {b"hi\n"}
        assert token not in (account.prefix / "pools.toml").read_text()
        assert all(path.stat().st_mode & 0o077 == 0 for path in account.prefix.glob("*[!n][!t]"))

        # The machine starts anew.
        old = account.manager()
        assert old is not None
        old.kill()
        eventually(lambda: account.manager() is None, "the manager dies")
        account.cron("@reboot")

        # Upgraded under a worker at work, which finishes what it has.
        (late,) = managers.stage(1, command=WAITS)
        eventually(lambda: states(late)["running"], "the bundle runs")
        worker = account.processes("-m", "worker")
        stale, used = (account.prefix / "versions" / name for name in ("0", "00"))
        for version, replaced in ((stale, 1), (used, 10**10)):
            version.mkdir()
            (version / "replaced").write_text(f"{replaced}\n")
            os.chown(version, NOBODY, NOBODY)
        before = account.installed()
        done = account.install("--from", str(account.wheel), "--dry-run")
        assert done.returncode == 0, done.stderr
        assert account.installed() == before
        done = account.install("--from", str(account.home / "no.whl"))
        assert done.returncode == 1
        assert account.installed() == before
        kept = account.manager()
        done = account.install(
            *("--from", str(account.wheel), "--python", str(account.module / "bin/python3")),
            LD_LIBRARY_PATH=str(account.module / "libraries"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert kept is not None
        assert not kept.is_running()
        assert (account.prefix / "current").samefile(account.prefix / "versions/2")
        assert not stale.exists()
        assert f"{used} stays, since this may run from it: 1 worker" in done.stdout
        assert set(account.processes("-m", "worker")) & set(worker)
        log = account.prefix / "log" / "manager.log"
        os.truncate(log, LONG_LOG_BYTES)  # as it is after months
        again = account.cron("*/5 * * * *")
        assert again.wait(COMMAND_SECONDS) == 0  # since the manager runs
        assert log.with_name("manager.log.1").stat().st_size >= LONG_LOG_BYTES
        assert log.stat().st_size < LONG_LOG_BYTES
        server.output("write", f"{late}/in/go", "on")
        eventually(lambda: states(late) == {"ready": 1}, "the bundle ends")
        assert said(late) == b"hi\n"

        # Uninstalled, once with a worker left, and then with its end.
        (cut,) = managers.stage(1, command=WAITS)
        eventually(lambda: states(cut)["running"], "the last bundle runs")
        done = account.install("--uninstall")
        assert done.returncode == 1
        assert f"not all that runs from {account.prefix}: 1 worker." in done.stderr
        assert account.manager() is None
        assert not account.table.exists()
        done = account.install("--uninstall", "--terminate-workers")
        assert done.returncode == 0, done.stdout + done.stderr
        eventually(lambda: states(cut)["staged"], "the bundle waits for another worker")
    assert list(account.home.iterdir()) == []
    assert account.processes() == []
    assert cluster.command("squeue", "-h", "-u", "nobody").split() == []


@pytest.mark.engine("systemd")
def test_where_a_user_may_linger_systemd_keeps_the_manager(
    server: Server, account: Account
) -> None:
    systemd = UserSystemd(NOBODY, account.home, account.directory)
    account.env |= systemd.env
    account.program("loginctl", "echo yes")
    unit = account.home / ".config/systemd/user/worker-manager.service"
    systemd.start()
    try:
        done = account.install(
            *("--from", str(account.wheel), "--", "--non-interactive"),
            *("--server", server.url, "--min", "1", "--worker-idle-seconds", "1000"),
            WORKER_MANAGER_TOKEN=server.home.token_path.read_text().strip(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shown = account.run("systemctl", "--user", "show", "worker-manager", "-p", "StatusText")
        assert shown.stdout.startswith("StatusText=keeping"), shown.stdout + shown.stderr
        old = account.manager()
        done = account.install("--from", str(account.wheel))
        assert done.returncode == 0, done.stdout + done.stderr
        assert old is not None
        assert not old.is_running()
        assert account.manager() is not None
        assert not account.table.exists()
        eventually(lambda: account.processes("-m", "worker"), "the worker starts")
        done = account.install("--uninstall")
        assert done.returncode == 1
        assert account.manager() is None
        assert not unit.exists()
        done = account.install("--uninstall", "--terminate-workers")
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(account.home.rglob("*")) == [account.home / ".config"]
    finally:
        systemd.stop()
