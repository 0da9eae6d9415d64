"""A PostgreSQL of a test's own, in a directory that is thrown away; started, stopped, killed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql

DATABASE = "bundles"


def binaries() -> Path:
    """Where `initdb` and `pg_ctl` are."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if installed:
        return installed[-1].parent
    found = shutil.which("initdb")
    assert found, "PostgreSQL is not installed: make engines"
    return Path(found).resolve().parent


class PostgreSQL:
    """One server on a free port of 127.0.0.1 with one empty database."""

    def __init__(self, directory: Path) -> None:
        # Not below pytest's directory, which nobody but root may enter: it runs as its own user.
        self._root = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._data = self._root / "data"
        self._log = directory / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(self._root, self._user)
        self._run("initdb", "-A", "trust", "-U", self._user, "--no-sync", "-D", str(self._data))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"postgresql://{self._user}@{self.address}/{DATABASE}"

    def start(self) -> None:
        """Until connections are accepted; makes the database the first time."""
        options = f"-p {self._port} -k {self._root} -c listen_addresses=127.0.0.1"
        log = self._root / "log"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(log), "-w", "start")
        listing = self._run(
            "psql", "-h", "127.0.0.1", "-p", str(self._port), "-d", "postgres", "-tAc",
            "SELECT datname FROM pg_database",
        )  # fmt: skip
        if DATABASE not in listing.split():
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), DATABASE)

    def demand_password(self, user: str, password: str) -> None:
        """From now on the database is that of ``user``, who comes by TLS and with a password."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            who, word = sql.Identifier(user), sql.Literal(password)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(who, word))
            name = sql.Identifier(DATABASE)
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, who))
            connection.execute("ALTER SYSTEM SET ssl = on")
        self.stop()
        certificate, key = self._data / "server.crt", self._data / "server.key"
        self._run_program(
            *("openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=127.0.0.1"),
            *("-out", str(certificate), "-keyout", str(key)),
        )
        (self._data / "pg_hba.conf").write_text(
            f"hostssl all {user} 127.0.0.1/32 scram-sha-256\n"
            f"host all {self._user} 127.0.0.1/32 trust\n"
        )
        self.start()

    def stop(self) -> None:
        """At once, as in a crash: connections are cut."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def close(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> str:
        return self._run_program(str(binaries() / program), *arguments)

    def _run_program(self, program: str, *arguments: str) -> str:
        is_root = os.geteuid() == 0
        with self._log.open("a") as log:
            done = subprocess.run(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                # Not a pipe where a server is started: it would keep it open.
                stdout=subprocess.PIPE if program.endswith("/psql") else subprocess.DEVNULL,
                stderr=log,
                text=True,
                timeout=100,
                check=False,
                cwd=self._root,
                user=self._user if is_root else None,
                group=self._user if is_root else None,
                extra_groups=[] if is_root else None,
            )
        assert done.returncode == 0, f"{program} failed: {self._log.read_text()}"
        return done.stdout or ""
