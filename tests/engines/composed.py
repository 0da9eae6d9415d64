"""What deploy/compose.yaml brings up, on an engine of the tests.

The database is this machine's PostgreSQL in an image that starts as the official one does: it makes
the database of POSTGRES_USER and POSTGRES_DB when its volume is empty, wants POSTGRES_PASSWORD of
who comes by the network unless POSTGRES_HOST_AUTH_METHOD says otherwise, and has its socket in
/var/run/postgresql. What else that image can do is not there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import host_files
from docker_engine import TOOLS, DockerEngine
from postgresql_engine import binaries

from bundles.client import Client
from bundles.home import Credentials

ROOT = Path(__file__).parents[2]
DATABASE = "localhost/postgres:1"
USER = 1000
UP_SECONDS = 240

ENTRYPOINT = """#!/bin/sh
set -e
data=/var/lib/postgresql/data
if ! [ -s "$data/PG_VERSION" ]; then
    initdb --auth "${POSTGRES_HOST_AUTH_METHOD:-trust}" --username "$POSTGRES_USER" \\
        --encoding UTF8 --no-sync --pgdata "$data"
    echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$data/pg_hba.conf"
    [ -z "$POSTGRES_PASSWORD" ] ||
        echo "ALTER USER $POSTGRES_USER PASSWORD '$POSTGRES_PASSWORD'" |
            postgres --single -D "$data" postgres
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$data" postgres
fi
exec postgres -D "$data" -k /var/run/postgresql -h '*'
"""


def import_database(engine: DockerEngine) -> None:
    """The image ``DATABASE``."""
    programs = binaries()
    places = [programs, programs.with_name("lib"), _share(programs)]
    files = {
        str(path).lstrip("/"): path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and "bitcode" not in path.parts
    }
    content = BytesIO(host_files.archive(TOOLS, and_also=files))
    with tarfile.open(fileobj=content, mode="a") as archive:
        for name, mode in (("var/lib/postgresql/data", 0o700), ("var/run/postgresql", 0o3777)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode, directory.uid = tarfile.DIRTYPE, mode, 999
            archive.addfile(directory)
        _add(archive, "etc/passwd", "postgres:x:999:999::/var/lib/postgresql:/bin/sh\n")
        _add(archive, "entrypoint", ENTRYPOINT)
    engine.command(
        *("import", "--change", "USER 999:999", "--change", 'ENTRYPOINT ["/entrypoint"]'),
        *("--change", f"ENV PATH={programs}:/usr/bin"),
        *("-", DATABASE),
        content=content.getvalue(),
    )


def _share(programs: Path) -> Path:
    said = subprocess.run(
        [programs / "pg_config", "--sharedir"], capture_output=True, text=True, check=True
    )
    return Path(said.stdout.strip())


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o755
    archive.addfile(entry, BytesIO(text.encode()))


class Composed:
    """``up`` starts it all, ``down`` leaves nothing of it. Its files are a copy of deploy's.

    ``program``: `docker compose`, or the `docker-compose` that was there before.
    """

    def __init__(
        self, engine: DockerEngine, program: list[str], *, manager_image: str, worker_image: str
    ) -> None:
        self._engine = engine
        self._program = program
        self.directory = Path(tempfile.mkdtemp(prefix="composed-"))
        self.home = self.directory / "home"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, USER, USER)
        shutil.copy(ROOT / "deploy" / "compose.yaml", self.directory)
        shutil.copytree(ROOT / "deploy" / "compose", self.directory / "compose")
        pools_file = self.directory / "compose" / "pools.toml"
        pools = pools_file.read_text()
        assert 'image = "bundle-worker"' in pools
        pools_file.write_text(
            pools.replace('image = "bundle-worker"', f'image = "{worker_image}"')
            + "worker-idle-seconds = 2\n"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._settings = {
            "COMPOSE_PROJECT_NAME": "worker-manager",
            "DATABASE_IMAGE": DATABASE,
            "MANAGER_IMAGE": manager_image,
            "MANAGER_HOME": str(self.home),
            "ENGINE_SOCKET": str(engine.socket),
            "ENGINE_GROUP": str(engine.socket.stat().st_gid),
            "SERVER_PORT": str(self._port),
        }

    def compose(self, *arguments: str) -> str:
        """`docker compose ARGUMENTS…`; what it printed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._program, "--file", str(self.directory / "compose.yaml"), *arguments],
            env=os.environ | self._engine.client_env | self._settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )

    def up(self) -> None:
        self.compose("up", "--detach", "--no-build")

    def bundles(self, *arguments: str) -> str:
        """`bundles ARGUMENTS…` beside the server."""
        return self.compose("exec", "-T", "server", "bundles", *arguments)

    def client(self, token: str) -> Client:
        """By the port that is published to this machine."""
        return Client(f"http://127.0.0.1:{self._port}", Credentials(token=token))

    def container(self, service: str) -> str:
        (name,) = self.compose("ps", "--quiet", service).split()
        return name

    def logs(self) -> str:
        return self.run("logs", "--no-color").stdout

    def down(self) -> None:
        self.compose("down", "--volumes")
        shutil.rmtree(self.directory, ignore_errors=True)
