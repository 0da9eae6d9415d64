"""A Docker engine of the tests' own: its own socket, data and networks, gone when they end.

It shares nothing with an engine of the machine's, and sets no packet filter rules. Needs root.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import host_files
import psutil

START_SECONDS = 60.0
STOP_SECONDS = 60.0

IMAGE = "localhost/base:1"
"""No registry listens on localhost: a pull fails at once, and the local image is taken."""

ADDRESSES = "10.213.0.0/16"
"""What it gives networks of."""

TOOLS = (
    *("bash", "cat", "chmod", "env", "head", "ln", "ls", "mkdir", "mkfifo", "perl", "rm", "sleep"),
    *("true", "truncate", "wc"),
)


class Registry:
    """Debian's `docker-registry` on a loopback port, empty, until ``stop``. ``at`` is its name in
    references: `127.0.0.1:PORT`. ``password``: it wants ``USER`` and that."""

    USER = "somebody"

    def __init__(self, password: str = "") -> None:
        self._password = password
        self._directory = Path(tempfile.mkdtemp(prefix="registry-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.at = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The same contents at the same port, every time."""
        configuration = self._directory / "registry.yml"
        configuration.write_text(
            f"version: 0.1\nlog: {{level: error}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self._directory}/data}}}}\n"
            f"http: {{addr: '{self.at}'}}\n"
            + (
                f"auth: {{htpasswd: {{realm: ours, path: {self._directory}/htpasswd}}}}\n"
                if self._password
                else ""
            )
        )
        if self._password:
            # bcrypt, which Python cannot and libc can.
            program = "print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))"
            hashed = subprocess.run(
                ["perl", "-e", program, self._password], capture_output=True, text=True, check=True
            ).stdout
            (self._directory / "htpasswd").write_text(f"{self.USER}:{hashed}\n")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket() as connection:
            connection.settimeout(1.0)
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def halt(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.halt()
        shutil.rmtree(self._directory, ignore_errors=True)


class DockerEngine:
    """`dockerd`, from ``start`` to ``stop``. ``env`` makes our workers find it, with their
    ``runtime``; ``client_env`` makes every Docker client find it."""

    runtime = "docker"

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="engine-"))  # a socket's path must be short
        self.socket = self.directory / "docker.sock"
        self.env = self.client_env = {"DOCKER_HOST": f"unix://{self.socket}"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command_line(),
                # Nothing is pulled from anywhere: what asks for that is told at once.
                env=os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "localhost"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"it ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"it does not answer: {self.log()[-2000:]}"
            time.sleep(0.05)

    def _command_line(self) -> list[str]:
        return [
            *("dockerd", "--host", f"unix://{self.socket}"),
            *("--data-root", str(self.directory / "data")),
            *("--exec-root", str(self.directory / "exec")),
            *("--pidfile", str(self.directory / "pid")),
            *("--bridge", "none", "--iptables=false", "--ip-forward=false"),
            *("--default-address-pool", f"base={ADDRESSES},size=24"),
            *("--shutdown-timeout", "5"),
        ]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in connection.recv(4096)
            except OSError:
                return False

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def command(self, *arguments: str, content: bytes | None = None) -> str:
        """`docker ARGUMENTS…`; returns what it printed."""
        done = subprocess.run(
            ["docker", *arguments],
            env=os.environ | self.client_env,
            input=content,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"docker {arguments[0]}: {done.stderr.decode()}"
        return done.stdout.decode()

    def import_base(self) -> None:
        """The image ``IMAGE``: a shell and a few tools, made of this machine's own files."""
        self.command("import", "-", IMAGE, content=host_files.archive(TOOLS))

    def import_files(self, reference: str, files: dict[str, bytes]) -> None:
        """An image of these files and nothing else."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
        self.command("import", "-", reference, content=buffer.getvalue())

    def kill(self) -> None:
        """SIGKILL: what ran in it is left to what comes after; ``start`` brings it back."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        # The kernel kills its containerd with it. Where nobody reaps orphans that pid stays taken,
        # and the next dockerd would wait for it.
        (self.directory / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def shut_down(self) -> None:
        """As the machine's administrator does it: containers are asked to end first."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=STOP_SECONDS)
        self._process = None

    def stop(self) -> None:
        """End it with its containers, and leave nothing of it."""
        if self._process is not None:
            if self._process.poll() is None and (left := self.command("ps", "-aq").split()):
                with contextlib.suppress(AssertionError):  # a removal that is under way
                    self.command("rm", "--force", *left)
            if self._process.poll() is None:
                self.command("network", "prune", "--force")  # else its bridges outlive it
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._end_orphans()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_orphans(self) -> None:
        """What an engine that was killed has left: containers with their shims, and mounts."""
        address = str(self.directory / "exec" / "containerd" / "containerd.sock")
        for shim in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if address in shim.cmdline():
                    for process in [*shim.children(recursive=True), shim]:
                        process.kill()
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in sorted(mounted, reverse=True):
            if place.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", place], timeout=60, check=False)
