"""A user of a CodaLab server: what ours are given, and what becomes of their bundles."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codalab_server import PASSWORD, CodalabServer, clean_environment

from bundles.client import Client
from bundles.home import Credentials, Home
from bundles.model import Bundle, new_uuid

PATIENCE_SECONDS = 30.0


class CodalabUser:
    """Stands where a test has a server of ours: ``env`` makes our commands find CodaLab's."""

    def __init__(self, server: CodalabServer, name: str, directory: Path) -> None:
        self.server = server
        self.name = name
        self.directory = directory
        self.home = Home(directory / "home")
        self.url = server.url
        self.env = clean_environment(
            WORKER_MANAGER_HOME=str(self.home.path),
            WORKER_MANAGER_SERVER=server.url,
            CODALAB_USERNAME=name,
            CODALAB_PASSWORD=PASSWORD,
            NO_COLOR="1",
            COLUMNS="80",
        )

    def client(self) -> Client:
        return Client(self.url, Credentials(username=self.name, password=PASSWORD))

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE ARGUMENTS…`, ended."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def run(
        self, command: str, dependencies: Sequence[tuple[str, str, str]] = (), **metadata: Any
    ) -> str:
        """Queue a run over (key, uuid, path); returns its uuid."""
        with self.client() as client:
            return queue_run(client, command, dependencies, **metadata)

    def wait(self, uuid: str, *states: str) -> Bundle:
        """The bundle once it is in one of the states."""
        with self.client() as client:
            return wait_for(client, uuid, *states)

    def read(self, uuid: str, path: str = "") -> str:
        with self.client() as client:
            return read(client, uuid, path)


def queue_run(
    client: Client,
    command: str,
    dependencies: Sequence[tuple[str, str, str]] = (),
    **metadata: Any,
) -> str:
    """Queue a run over (key, uuid, path); returns its uuid."""
    uuid = new_uuid()
    client.create(
        [
            {
                "uuid": uuid,
                "bundle_type": "run",
                "command": command,
                "dependencies": [
                    {"child_path": key, "parent_uuid": parent, "parent_path": path}
                    for key, parent, path in dependencies
                ],
                "metadata": {
                    "name": "run",
                    "request_memory": "128m",
                    "request_priority": 0,
                    **metadata,
                },
            }
        ]
    )
    return uuid


def wait_for(client: Client, uuid: str, *states: str) -> Bundle:
    """The bundle once it is in one of the states; asks, as a CodaLab server tells nobody."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        bundle = client.bundle(uuid)
        if bundle.state in states:
            return bundle
        assert not bundle.final, f"{uuid} is {bundle.state}: {dict(bundle.metadata)}"
        assert time.monotonic() < deadline, f"{uuid} stays {bundle.state}: {dict(bundle.metadata)}"
        time.sleep(0.1)


def read(client: Client, uuid: str, path: str = "") -> str:
    with client.download(uuid, path) as download:
        return b"".join(download.chunks()).decode()
