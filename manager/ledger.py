"""What this installation meant to launch, and what became of it: SQLite, one file a home.

An intent is written before the backend is called and its outcome after, so that whatever a crash
leaves can be finished or undone by the next manager. Not for what was decided and why: journal.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends.base import EndCause, Job, JobState, LaunchKey

SCHEMA_VERSION = 3
BUSY_SECONDS = 10.0
KEPT_SECONDS = 35 * 86400.0
"""Launches that ended longer ago are forgotten; what the longest month cost is not."""

_SCHEMA = """
CREATE TABLE pool (
    name TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    server TEXT NOT NULL,
    settings TEXT NOT NULL,       -- JSON: the options of pool and backend, no secrets
    sequence INTEGER NOT NULL DEFAULT 0,
    last_launch REAL
);
CREATE TABLE launch (
    key TEXT PRIMARY KEY,
    pool TEXT NOT NULL REFERENCES pool (name),
    sequence INTEGER NOT NULL,
    requested REAL NOT NULL,      -- the intent was written
    outcome TEXT,                 -- launched, refused, undone; NULL: not known yet
    settled REAL,                 -- the outcome was written
    job_id TEXT,
    error TEXT,
    ended REAL,
    exit_code INTEGER,
    why TEXT,
    cause TEXT,                   -- backends.base.EndCause
    error_kind TEXT,              -- the class of the error, of backends.base
    started REAL,                 -- its job runs
    registered REAL,              -- the server knows the worker
    first_bundle REAL,
    draining REAL,                -- told to take no more
    given_up REAL,                -- ended by us, for it never registered
    last_words TEXT               -- the end of its output, of one that was given up
);
CREATE INDEX launch_open ON launch (pool) WHERE outcome IS NULL;
CREATE INDEX launch_by_sequence ON launch (pool, sequence);
"""

_MIGRATIONS = {
    1: ("cause TEXT",),
    2: (
        "error_kind TEXT",
        "started REAL",
        "registered REAL",
        "first_bundle REAL",
        "draining REAL",
        "given_up REAL",
        "last_words TEXT",
    ),
}
"""The columns of a launch that each version lacks and the next one has."""


class Outcome(StrEnum):
    """What became of an intent to launch."""

    LAUNCHED = "launched"
    REFUSED = "refused"
    """The backend said why it did not."""
    UNDONE = "undone"
    """The manager died in between, and the backend has no such job."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One intent and what is known of it. Times are seconds since the epoch."""

    key: LaunchKey
    requested: float
    outcome: Outcome | None = None
    job_id: str | None = None
    error: str | None = None
    ended: float | None = None
    exit_code: int | None = None
    why: str | None = None
    cause: EndCause | None = None
    started: float | None = None
    draining: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as its manager last described it."""

    name: str
    backend: str
    server: str
    settings: Mapping[str, Any]
    last_launch: float | None = None


class Ledger:
    """The ledger of one home. One manager a pool writes; `status` and `--plan` read.

    Raises sqlite3.Error when the file cannot be used.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        # Not WAL: homes often are on NFS, where hosts would not see each other's. A file that has
        # been in that mode leaves it once nobody else has it open.
        with suppress(sqlite3.OperationalError):
            self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA foreign_keys = ON")
        self._migrate()

    @classmethod
    def read_only(cls, path: Path) -> Ledger | None:
        """The ledger without the right to change it; None when no manager ever made it."""
        if not path.exists():
            return None
        ledger = cls.__new__(cls)
        ledger._clock = time.time
        # Not mode=ro: what a manager was killed in the midst of must be undone before it is read.
        ledger._database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS
        )
        ledger._database.execute("PRAGMA query_only = ON")
        ledger._database.row_factory = sqlite3.Row
        if ledger._version() == 0:
            ledger.close()
            return None
        return ledger

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _version(self) -> int:
        with closing(self._database.execute("PRAGMA user_version")) as cursor:
            return int(cursor.fetchone()[0])

    def _migrate(self) -> None:
        with self._transaction():
            version = self._version()
            if version > SCHEMA_VERSION:
                raise sqlite3.DatabaseError(
                    f"the ledger is of a later version ({version}) than this program"
                )
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._database.execute(statement)
            for earlier in range(max(version, 1), SCHEMA_VERSION):
                for column in _MIGRATIONS[earlier] if version else ():
                    self._database.execute(f"ALTER TABLE launch ADD COLUMN {column}")
            if version < SCHEMA_VERSION:
                self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)

    def check(self) -> None:
        """Raises sqlite3.DatabaseError when the file is damaged."""
        found = self._rows("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"it is damaged: {found}")

    # Pools

    def describe(self, pool: Pool) -> None:
        """Write down what a pool is; its sequence and last launch stay. Forgets old launches."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO pool (name, backend, server, settings) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET backend = excluded.backend, "
                "server = excluded.server, settings = excluded.settings",
                (pool.name, pool.backend, pool.server, json.dumps(dict(pool.settings))),
            )
            self._database.execute(
                "DELETE FROM launch WHERE pool = ? AND outcome IS NOT NULL "
                "AND coalesce(ended, CASE outcome WHEN 'launched' THEN NULL ELSE settled END) < ?",
                (pool.name, self._clock() - KEPT_SECONDS),
            )

    def pools(self) -> list[Pool]:
        """Every pool that a manager of this home ever kept, by name."""
        return [
            Pool(
                name=row["name"],
                backend=row["backend"],
                server=row["server"],
                settings=json.loads(row["settings"]),
                last_launch=row["last_launch"],
            )
            for row in self._rows("SELECT * FROM pool ORDER BY name")
        ]

    # Launches

    def intend(self, pool: str, number: int) -> list[LaunchKey]:
        """Write down that ``number`` workers are about to be launched; returns their keys."""
        now = self._clock()
        with self._transaction():
            row = self._rows("SELECT sequence FROM pool WHERE name = ?", (pool,))[0]
            keys = LaunchKey.make_row(pool, row["sequence"] + 1, number)
            self._database.execute(
                "UPDATE pool SET sequence = sequence + ?, last_launch = ? WHERE name = ?",
                (number, now, pool),
            )
            self._database.executemany(
                "INSERT INTO launch (key, pool, sequence, requested) VALUES (?, ?, ?, ?)",
                [(str(key), pool, key.sequence, now) for key in keys],
            )
        return keys

    def settle(
        self,
        key: LaunchKey,
        outcome: Outcome,
        *,
        job_id: str | None = None,
        error: str | None = None,
    ) -> None:
        """Write down what became of an intent. The first outcome stands."""
        self.settle_all([(key, outcome, job_id, error)])

    def settle_all(
        self, outcomes: Iterable[tuple[LaunchKey, Outcome, str | None, str | None]]
    ) -> None:
        """As `settle`, for several (key, outcome, job id, error) in one step."""
        now = self._clock()
        with self._transaction():
            self._database.executemany(
                "UPDATE launch SET outcome = ?, settled = ?, job_id = ?, error = ? "
                "WHERE key = ? AND outcome IS NULL",
                [
                    (outcome, now, job_id, error, str(key))
                    for key, outcome, job_id, error in outcomes
                ],
            )

    def record_ends(self, jobs: Sequence[Job]) -> list[Job]:
        """Write down the ends of those jobs that were not known to have ended; returns them."""
        ended = [job for job in jobs if job.state is JobState.ENDED and job.key is not None]
        if not ended:
            return []
        open_keys = {
            row["key"]
            for row in self._rows(
                "SELECT key FROM launch WHERE outcome = 'launched' AND ended IS NULL"
            )
        }
        news = [job for job in ended if str(job.key) in open_keys]
        if news:
            self._write_ends(
                [
                    (job.ended or self._clock(), job.exit_code, job.why, job.cause, str(job.key))
                    for job in news
                ]
            )
        return news

    def record_missing(self, pool: str, keys: Iterable[LaunchKey]) -> None:
        """Write down that launched jobs left the backend's list without a word."""
        now = self._clock()
        self._write_ends(
            [(now, None, "no longer listed", EndCause.UNKNOWN, str(key)) for key in keys]
        )

    def record_draining(self, keys: Iterable[LaunchKey], now: float) -> None:
        """Write down that workers were told to take no more; the first time stands."""
        self._mark("draining", dict.fromkeys(keys, now))

    def _mark(self, column: str, times: Mapping[LaunchKey, float]) -> None:
        if not times:
            return
        with self._transaction():
            self._database.executemany(
                f"UPDATE launch SET {column} = ? WHERE key = ? AND {column} IS NULL",
                [(when, str(key)) for key, when in times.items()],
            )

    def _write_ends(
        self, ends: Sequence[tuple[float, int | None, str, EndCause | None, str]]
    ) -> None:
        with self._transaction():
            self._database.executemany(
                "UPDATE launch SET ended = ?, exit_code = ?, why = ?, cause = ? WHERE key = ?", ends
            )

    def unsettled(self, pool: str) -> list[Launch]:
        """The intents of a pool whose outcome is not known, oldest first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? AND outcome IS NULL ORDER BY sequence", (pool,)
        )

    def running(self, pool: str) -> list[Launch]:
        """The launches of a pool that are not known to have ended, oldest first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? AND outcome = 'launched' AND ended IS NULL "
            "ORDER BY sequence",
            (pool,),
        )

    def living(self, pool: str) -> dict[str, float | None]:
        """The keys of what may still cost something, open intents included, and when each job
        started, None: it has not yet."""
        rows = self._rows(
            "SELECT * FROM launch WHERE pool = ? AND ended IS NULL "
            "AND (outcome IS NULL OR outcome = 'launched')",
            (pool,),
        )
        # One who only reads may meet a ledger of an earlier version.
        has_starts = bool(rows) and "started" in rows[0].keys()  # noqa: SIM118 (a row's values)
        return {row["key"]: row["started"] if has_starts else None for row in rows}

    def ended_since(self, pool: str, when: float) -> list[Launch]:
        """The launches of a pool that ended since ``when``, the oldest end first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? AND ended >= ? ORDER BY ended", (pool, when)
        )

    def recent(self, pool: str, number: int) -> list[Launch]:
        """The last ``number`` launches of a pool, newest first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? ORDER BY sequence DESC LIMIT ?", (pool, number)
        )

    def launch(self, key: LaunchKey) -> Launch | None:
        """What became of a key; None for one that this installation did not intend."""
        found = self._launches("SELECT * FROM launch WHERE key = ?", (str(key),))
        return found[0] if found else None

    def launched(self, pool: str) -> int:
        """How many workers of a pool were launched, as far back as the ledger goes."""
        rows = self._rows(
            "SELECT count(*) AS number FROM launch WHERE pool = ? AND outcome = 'launched'",
            (pool,),
        )
        return int(rows[0]["number"])

    def requested_since(self, pool: str, when: float) -> int:
        """How many workers of a pool were meant to be launched since then."""
        rows = self._rows(
            "SELECT count(*) AS number FROM launch WHERE pool = ? AND requested > ?", (pool, when)
        )
        return int(rows[0]["number"])

    def last_launch(self, pool: str) -> float | None:
        """When a launch was last tried, whether it succeeded or not."""
        rows = self._rows("SELECT last_launch FROM pool WHERE name = ?", (pool,))
        return rows[0]["last_launch"] if rows else None

    def _launches(self, query: str, values: tuple[Any, ...]) -> list[Launch]:
        return [_launch(row) for row in self._rows(query, values)]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()


def _launch(row: sqlite3.Row) -> Launch:
    key = LaunchKey.parse(row["key"])
    if key is None:
        raise sqlite3.DatabaseError(f"the ledger holds {row['key']!r}, which is no launch key")
    # One who only reads may meet a ledger of an earlier version.
    later = dict(row)
    return Launch(
        key=key,
        requested=row["requested"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        job_id=row["job_id"],
        error=row["error"],
        ended=row["ended"],
        exit_code=row["exit_code"],
        why=row["why"],
        cause=EndCause(cause) if (cause := later.get("cause")) else None,
        started=later.get("started"),
        draining=later.get("draining"),
    )


class _Transaction:
    """All or nothing; takes the write lock at once, so that nothing read in it is outdated."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
