"""Starts one of CodaLab's programs, in CodaLab's own environment, changing nothing that it says.

    codalab_program.py server|bundle-manager|ws-server|worker|worker-manager|add-users ARGUMENTS…

CodaLab 1.7.5 is made for Python 3.9, MySQL and a network of containers. So: what Python 3.11 took
away is put back, its own SQLite model (in memory, for its unit tests) keeps to a file under
CODALAB_HOME that several processes share, and its websocket server is looked for on this machine.
Not imported by any test: it runs in another Python.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROGRAMS = {
    "server": "codalab.bin.server",
    "bundle-manager": "codalab.bin.bundle_manager",
    "ws-server": "codalab.bin.ws_server",
    "worker": "codalab.worker.main",
    "worker-manager": "codalab.worker_manager.main",
}


def let_wait_take_coroutines() -> None:
    """As until Python 3.10: CodaLab rings its websocket doorbell by `wait([coroutine])`."""
    wait = asyncio.wait

    async def wait_for_tasks(awaitables: Iterable[Any], **options: Any) -> Any:
        return await wait([asyncio.ensure_future(one) for one in awaitables], **options)

    asyncio.wait = wait_for_tasks  # type: ignore[assignment]


def keep_the_database_in_a_file() -> None:
    import sqlalchemy
    from codalab.model import sqlite_model

    def create_engine(*_: Any, **__: Any) -> Any:
        engine = sqlalchemy.create_engine(
            f"sqlite:///{Path(os.environ['CODALAB_HOME']) / 'codalab.db'}",
            strategy="threadlocal",
            poolclass=sqlalchemy.pool.NullPool,
            connect_args={"check_same_thread": False, "timeout": 60, "isolation_level": None},
        )

        # CodaLab counts a user's disk by a transaction within another, and commits both: what it
        # says of the end of a run would be read by halves, the more so where writers wait.
        class Whole(type(engine)):  # type: ignore[misc]
            def commit(self) -> None:
                pass

            def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
                if kind is None:
                    super().commit()
                else:
                    self.rollback()

        engine.__class__ = Whole

        # Every transaction takes the lock at its start: one that read first could not wait for it.
        @sqlalchemy.event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            connection.execute("BEGIN IMMEDIATE")

        @sqlalchemy.event.listens_for(engine, "connect")
        def connect(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")

        return engine

    sqlite_model.create_engine = create_engine
    for name in ("encode_str", "decode_str"):
        setattr(sqlite_model.SQLiteModel, name, lambda _, value: value)


def look_for_the_doorbell_here() -> None:
    from codalab.lib.codalab_manager import CodaLabManager

    CodaLabManager.ws_server = property(
        lambda manager: f"ws://127.0.0.1:{manager.config['ws-server']['ws_port']}"
    )


def add_users(password: str, *names: str) -> None:
    """The first one is the root user, whose id is 0."""
    from codalab.lib.codalab_manager import CodaLabManager

    model = CodaLabManager().model()
    for number, name in enumerate(names):
        model.add_user(
            name,
            f"{name}@example.org",
            name,
            name,
            password,
            "",
            user_id=str(number),
            is_verified=True,
            has_access=True,
        )


def main() -> None:
    program, *arguments = sys.argv[1:]
    let_wait_take_coroutines()
    if program in ("server", "bundle-manager", "add-users"):
        keep_the_database_in_a_file()
        look_for_the_doorbell_here()
    if program == "add-users":
        add_users(*arguments)
        return
    sys.argv = [f"cl-{program}", *arguments]
    importlib.import_module(PROGRAMS[program]).main()


if __name__ == "__main__":
    main()
