"""A real CodaLab server: REST server, bundle manager and websocket server, as three processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

PROGRAM = Path(__file__).with_name("codalab_program.py")
PASSWORD = "a-password"
START_SECONDS = 60.0
STOP_SECONDS = 15.0


def program(python: Path, name: str, *arguments: str) -> list[str]:
    """The command line of one of CodaLab's programs."""
    return [str(python), str(PROGRAM), name, *arguments]


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment, in which nothing says where a server is or who we are."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WORKER_MANAGER_", "CODALAB_"))
    }
    return kept | {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"} | variables


class CodalabServer:
    """``users`` are names of users with the password PASSWORD; `codalab` is the root user."""

    def __init__(self, python: Path, users: tuple[str, ...]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="codalab-"))  # its sockets' paths are short
        self.users = users
        self._python = python
        self._port, self._doorbell_port = _free_ports(2)
        self.url = f"http://127.0.0.1:{self._port}"
        self.env = clean_environment(CODALAB_HOME=str(self.directory), HOME=str(self.directory))
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        config = {
            "cli": {"default_address": self.url, "verbose": 1},
            "server": {
                "class": "SQLiteModel",
                "rest_host": "127.0.0.1",
                "rest_port": self._port,
                "auth": {"class": "RestOAuthHandler"},
                "secret_key": "a-secret-of-the-tests",
                "verbose": 1,
            },
            "ws-server": {"ws_port": self._doorbell_port},
            "workers": {"default_cpu_image": "localhost/base:1"},
            "aliases": {},
        }
        (self.directory / "config.json").write_text(json.dumps(config))
        subprocess.run(
            program(self._python, "add-users", PASSWORD, "codalab", *self.users),
            env=self.env,
            check=True,
            capture_output=True,
            timeout=START_SECONDS,
        )
        self._start("ws-server", "--port", str(self._doorbell_port))
        self.start_rest_server()
        self._start("bundle-manager")

    def start_rest_server(self) -> None:
        """Start the REST server, and wait until it answers."""
        process = self._start("server", "-p", "1", "-t", "30")
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert process.poll() is None, self.log("server")[-2000:]
            assert time.monotonic() < deadline, self.log("server")[-2000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            headers = {"X-Requested-With": "XMLHttpRequest"}
            reply = httpx.get(
                self.url + "/rest/user", headers=headers, timeout=5.0, trust_env=False
            )
            return reply.status_code == 401
        except httpx.HTTPError:
            return False

    def stop_rest_server(self) -> None:
        self._stop("server", signal.SIGKILL)

    def log(self, name: str) -> str:
        """What one of the programs said."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for name in list(self._running):
            self._stop(name, signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                program(self._python, name, *arguments),
                env=self.env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = process
        return process

    def _stop(self, name: str, number: int) -> None:
        """The program with its children: gunicorn's would outlive it."""
        process = self._running.pop(name)
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
