"""Connections to SQLite or PostgreSQL: one that writes, a pool that reads. No queries."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from bundles.errors import ServerFault, UsageError
from bundles.server import schema

BUSY_TIMEOUT_MILLISECONDS = 10_000
CONNECT_TIMEOUT_SECONDS = 5
READERS = 8
WRITER_LOCK = 0x62756E646C6573
"""PostgreSQL's advisory lock of the one server that writes: `bundles` in ASCII."""


class Database:
    """One database of bundles. Raises UsageError for a URL that names none that we speak to."""

    def __init__(self, url: str | None, home: Path) -> None:
        self.url = make_database_url(url, home)
        self.is_sqlite = self.url.startswith("sqlite")
        options: dict[str, Any] = {"pool_size": READERS, "max_overflow": READERS}
        if not self.is_sqlite:
            options["pool_pre_ping"] = True
            options["connect_args"] = {
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "options": "-c statement_timeout=60000",
                # A server that vanished without a word is noticed within a minute.
                "keepalives_idle": 20,
                "keepalives_interval": 10,
                "keepalives_count": 3,
            }
        engine = create_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(engine, "connect", _set_pragmas)
        self._engine = engine
        self._readers: Engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer: Connection | None = None

    def read(self) -> Connection:
        """A connection of the pool for a few reads: `with database.read() as connection`."""
        return self._readers.connect()

    def writer(self) -> Connection:
        """The connection that writes, opened if need be. Only for the thread that writes.

        Raises ServerFault when the database cannot be reached or another server writes to it.
        """
        if self._writer is not None:
            return self._writer
        try:
            connection = self._engine.connect()
        except SQLAlchemyError as error:
            raise ServerFault(f"the database cannot be reached: {first_line(error)}") from error
        if not self.is_sqlite:
            held = connection.execute(
                text("SELECT pg_try_advisory_lock(:key)"), {"key": WRITER_LOCK}
            )
            if not held.scalar():
                connection.close()
                raise ServerFault("another server writes to this database: stop that one first")
            connection.commit()
        self._writer = connection
        return connection

    def drop_writer(self) -> None:
        """Forget the connection that writes, with what it has not committed."""
        connection, self._writer = self._writer, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()
            connection.close()

    def migrate(self) -> None:
        """Create or update the tables. Raises ServerFault, UsageError."""
        connection = self.writer()
        try:
            with connection.begin():
                schema.migrate(connection)
        except SQLAlchemyError as error:
            self.drop_writer()
            raise ServerFault(f"the database cannot be used: {first_line(error)}") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._engine.dispose()


def make_database_url(url: str | None, home: Path) -> str:
    """The URL for SQLAlchemy. Raises UsageError for one that is not SQLite or PostgreSQL."""
    if not url:
        return f"sqlite:///{home / 'bundles.sqlite'}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(
            "the database is not a URL: write sqlite:///PATH or postgresql://USER@HOST/NAME"
        ) from None
    kind = parsed.get_backend_name() if "+" not in parsed.drivername else parsed.drivername
    if kind in ("postgresql", "postgres", "postgresql+psycopg"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif kind != "sqlite":
        raise UsageError(f"the database kind {kind!r} is unknown: use sqlite or postgresql")
    return parsed.render_as_string(hide_password=False)


def first_line(error: Exception) -> str:
    """What the database said, in one line and without SQLAlchemy's links and statements."""
    said = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", said.splitlines()[0])


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.close()
