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

from backends.base import BackendError, EndCause, Job, JobState, LaunchKey

SCHEMA_VERSION = 3
BUSY_SECONDS = 10.0
KEPT_SECONDS = 35 * 86400.0
"""Launches that ended longer ago are forgotten; what the longest month cost is not."""
LAST_WORDS_BYTES = 4096
KNOWN_FATES = 200
"""So many launches of which something is known tell how a pool is doing."""
LIMITS = frozenset(
    {
        "min_workers",
        "max_workers",
        "min_seconds_between_workers",
        "max_launches_per_minute",
        "drain_grace_seconds",
        "price_per_hour",
        "budget_per_hour",
        "budget_per_day",
        "budget_per_month",
        "together",
        "patience_seconds",
        "registration_seconds",
        "sleep_time",
        "restart_after_seconds",
        "search",
        "no_prefilter",
        "terminate_on_exit",
        "exit_after_num_failed",
    }
)
"""Settings that change how many workers there are, and nothing about a worker."""

_SCHEMA = """
CREATE TABLE pool (
    name TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    server TEXT NOT NULL,
    settings TEXT NOT NULL,       -- JSON: the options of pool and backend, no secrets
    sequence INTEGER NOT NULL DEFAULT 0,
    last_launch REAL,
    changed REAL,                 -- since when its workers are launched as they are now
    proven REAL                   -- when one of these last came to the server
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
CREATE INDEX launch_running ON launch (pool, sequence)
    WHERE outcome = 'launched' AND ended IS NULL;
CREATE INDEX launch_by_end ON launch (pool, ended);
CREATE INDEX launch_by_sequence ON launch (pool, sequence);
"""

_MIGRATIONS = {
    1: ("ALTER TABLE launch ADD COLUMN cause TEXT",),
    2: (
        "ALTER TABLE pool ADD COLUMN changed REAL",
        "ALTER TABLE pool ADD COLUMN proven REAL",
        "ALTER TABLE launch ADD COLUMN error_kind TEXT",
        "ALTER TABLE launch ADD COLUMN started REAL",
        "ALTER TABLE launch ADD COLUMN registered REAL",
        "ALTER TABLE launch ADD COLUMN first_bundle REAL",
        "ALTER TABLE launch ADD COLUMN draining REAL",
        "ALTER TABLE launch ADD COLUMN given_up REAL",
        "ALTER TABLE launch ADD COLUMN last_words TEXT",
        "CREATE INDEX launch_running ON launch (pool, sequence) "
        "WHERE outcome = 'launched' AND ended IS NULL",
        "CREATE INDEX launch_by_end ON launch (pool, ended)",
    ),
}
"""From each earlier version to the next."""


class Outcome(StrEnum):
    """What became of an intent to launch."""

    LAUNCHED = "launched"
    REFUSED = "refused"
    """The backend said why it did not."""
    UNDONE = "undone"
    """The manager died in between, and the backend has no such job."""


class Stage(StrEnum):
    """How far a worker's life is."""

    INTENDED = "intended"
    """Written down; the backend has not been asked, or has not answered."""
    REQUESTED = "requested"
    """Asked for, and the answer was lost: the next list tells."""
    PENDING = "pending"
    """Accepted; the server does not know the worker yet."""
    REGISTERED = "registered"
    """The server knows it; it has had no bundle."""
    WORKING = "working"
    """It was given a bundle."""
    DRAINING = "draining"
    """It was told to take no more."""
    ENDED = "ended"
    """Or never launched: refused, or undone."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One intent and what is known of it. Times are seconds since the epoch, None until then.

    ``settled``: when ``outcome`` was known, or its loss; ``error`` and ``error_kind``: why the
    backend did not launch it, in words and as the class of backends.base. ``started``: its job
    runs, as the service says. ``given_up``: we asked for its end, for it never registered;
    ``last_words``: the end of its output, as far as it was kept.
    """

    key: LaunchKey
    requested: float
    outcome: Outcome | None = None
    job_id: str | None = None
    error: str | None = None
    ended: float | None = None
    exit_code: int | None = None
    why: str | None = None
    cause: EndCause | None = None
    error_kind: str | None = None
    settled: float | None = None
    started: float | None = None
    registered: float | None = None
    first_bundle: float | None = None
    draining: float | None = None
    given_up: float | None = None
    last_words: str | None = None

    @property
    def stage(self) -> Stage:
        return self.stages()[-1][0]

    def stages(self) -> list[tuple[Stage, float]]:
        """The stages that it went through, and when it entered each, in order."""
        passed = [(Stage.INTENDED, self.requested)]
        if self.settled is not None:
            if self.outcome is None:
                passed.append((Stage.REQUESTED, self.settled))
            elif self.outcome is Outcome.LAUNCHED:
                passed.append((Stage.PENDING, self.settled))
            else:
                passed.append((Stage.ENDED, self.settled))
        for stage, when in (
            (Stage.REGISTERED, self.registered),
            (Stage.WORKING, self.first_bundle),
            (Stage.DRAINING, self.draining),
            (Stage.ENDED, self.ended),
        ):
            if when is not None:
                passed.append((stage, when))
        return passed


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What the launches of a pool say about it, for manager.health.

    ``fates``: the last launches of which something is known beside that they were accepted,
    newest first, none from before ``changed``. ``in_doubt``: how many were, or may have been,
    launched of which nothing is known. ``accepted``: when the backend last accepted one.
    ``proven``: when a worker last came to the server; ``changed``: since when the workers are
    launched as they are now.
    """

    fates: tuple[Launch, ...] = ()
    in_doubt: int = 0
    accepted: float | None = None
    proven: float | None = None
    changed: float = 0.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as its manager last described it."""

    name: str
    backend: str
    server: str
    settings: Mapping[str, Any]
    last_launch: float | None = None

    def way(self) -> str:
        """All that says what a worker of it is: text to compare, not to read."""
        settings = {name: value for name, value in self.settings.items() if name not in LIMITS}
        return json.dumps([self.backend, self.server, settings], sort_keys=True)


class Ledger:
    """The ledger of one home. One manager a pool writes; `status` and `--plan` read.

    Raises sqlite3.Error when the file cannot be used.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._running: dict[str, dict[sqlite3.Row, Launch]] = {}
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._refuse_later_version()  # before anything is changed
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
        ledger._running = {}
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

    def _refuse_later_version(self) -> None:
        version = self._version()
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"the ledger is of a later version ({version}) than this program"
            )

    def _migrate(self) -> None:
        with self._transaction():
            self._refuse_later_version()
            version = self._version()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._database.execute(statement)
            for earlier in range(max(version, 1), SCHEMA_VERSION):
                for statement in _MIGRATIONS[earlier] if version else ():
                    self._database.execute(statement)
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
        """Write down what a pool is; its sequence and last launch stay. Forgets old launches.

        When its workers are launched in another way than before, nothing is known of them yet.
        """
        with self._transaction():
            before = [known for known in self.pools() if known.name == pool.name]
            self._database.execute(
                "INSERT INTO pool (name, backend, server, settings) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET backend = excluded.backend, "
                "server = excluded.server, settings = excluded.settings",
                (pool.name, pool.backend, pool.server, json.dumps(dict(pool.settings))),
            )
            if not before or before[0].way() != pool.way():
                self._database.execute(
                    "UPDATE pool SET changed = ?, proven = NULL WHERE name = ?",
                    (self._clock(), pool.name),
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
        error: BackendError | str | None = None,
    ) -> None:
        """Write down what became of an intent. The first outcome stands."""
        self.settle_all([(key, outcome, job_id, error)])

    def settle_all(
        self, outcomes: Iterable[tuple[LaunchKey, Outcome, str | None, BackendError | str | None]]
    ) -> None:
        """As `settle`, for several (key, outcome, job id, error) in one step."""
        now = self._clock()
        with self._transaction():
            self._database.executemany(
                "UPDATE launch SET outcome = ?, settled = ?, job_id = ?, "
                "error = coalesce(?, error), error_kind = coalesce(?, error_kind) "
                "WHERE key = ? AND outcome IS NULL",
                [
                    (outcome, now, job_id, error and str(error), _kind(error), str(key))
                    for key, outcome, job_id, error in outcomes
                ],
            )

    def record_lost(self, errors: Mapping[LaunchKey, BackendError]) -> None:
        """Write down that the answers to requests were lost; what became of them stays open."""
        now = self._clock()
        with self._transaction():
            self._database.executemany(
                "UPDATE launch SET settled = ?, error = ?, error_kind = ? "
                "WHERE key = ? AND outcome IS NULL",
                [(now, str(error), _kind(error), str(key)) for key, error in errors.items()],
            )

    # The life of a worker

    def record_started(self, times: Mapping[LaunchKey, float]) -> None:
        """Write down when jobs began to run, as their service says; the first word stands."""
        self._mark("started", times)

    def record_registered(self, pool: str, times: Mapping[LaunchKey, float]) -> None:
        """Write down when workers came to the server, which proves the pool."""
        self._mark("registered", times)
        if times:
            self.prove(pool, max(times.values()))

    def record_first_bundle(self, times: Mapping[LaunchKey, float]) -> None:
        """Write down when workers were given their first bundles."""
        self._mark("first_bundle", times)

    def record_given_up(self, key: LaunchKey, now: float, last_words: str) -> None:
        """Write down that we are about to end a worker that never registered."""
        self._mark("given_up", {key: now})
        self.record_last_words(key, last_words)

    def record_last_words(self, key: LaunchKey, last_words: str) -> None:
        """Keep the end of a worker's output, LAST_WORDS_BYTES of it. The caller took out what is
        secret."""
        kept = last_words.encode()[-LAST_WORDS_BYTES:].decode(errors="ignore")
        with self._transaction():
            self._database.execute(
                "UPDATE launch SET last_words = ? WHERE key = ?", (kept, str(key))
            )

    def prove(self, pool: str, when: float) -> None:
        """Write down that a worker of the pool came, launched as they are now."""
        with self._transaction():
            self._database.execute(
                "UPDATE pool SET proven = max(coalesce(proven, 0), ?) WHERE name = ?", (when, pool)
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
        self.record_started({job.key: job.started for job in news if job.key and job.started})
        for job in news:
            if job.cause is EndCause.FINISHED and job.key is not None:
                self.prove(job.key.pool, job.ended or self._clock())
        return news

    def record_missing(
        self, pool: str, keys: Iterable[LaunchKey], cause: EndCause = EndCause.UNKNOWN
    ) -> None:
        """Write down that launched jobs left the backend's list without a word."""
        now = self._clock()
        self._write_ends([(now, None, "no longer listed", cause, str(key)) for key in keys])

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
        rows = self._rows(
            "SELECT * FROM launch WHERE pool = ? AND outcome = 'launched' AND ended IS NULL "
            "ORDER BY sequence",
            (pool,),
        )
        # Of thousands few have changed since the last look.
        known = self._running.get(pool, {})
        self._running[pool] = {row: known.get(row) or _launch(row) for row in rows}
        return list(self._running[pool].values())

    def living(self, pool: str) -> dict[str, float | None]:
        """The keys of what may still cost something, open intents included, and when each job
        started, None: it has not yet."""
        # One who only reads may meet a ledger of an earlier version.
        started = "started" if self._version() >= 3 else "NULL"
        rows = self._rows(
            f"SELECT key, {started} FROM launch WHERE pool = ? AND ended IS NULL "
            "AND (outcome IS NULL OR outcome = 'launched')",
            (pool,),
        )
        return {key: when for key, when in rows}  # noqa: C416 (dict() takes a row for a mapping)

    def ended_since(self, pool: str, when: float) -> list[Launch]:
        """The launches of a pool that ended since ``when``, the oldest end first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? AND ended >= ? ORDER BY ended", (pool, when)
        )

    def later(self, pool: str, sequence: int) -> list[Launch]:
        """The launches of a pool after that one, oldest first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? AND sequence > ? ORDER BY sequence",
            (pool, sequence),
        )

    def recent(self, pool: str, number: int) -> list[Launch]:
        """The last ``number`` launches of a pool, newest first."""
        return self._launches(
            "SELECT * FROM launch WHERE pool = ? ORDER BY sequence DESC LIMIT ?", (pool, number)
        )

    def record(self, pool: str) -> PoolRecord:
        """What the launches of a pool say about it."""
        rows = self._rows("SELECT * FROM pool WHERE name = ?", (pool,))
        if not rows:
            return PoolRecord()
        row = dict(rows[0])
        changed = row.get("changed") or 0.0
        if "changed" not in row:  # a ledger of an earlier version, which is only read
            return PoolRecord()
        fates = self._launches(
            "SELECT * FROM launch WHERE pool = ? AND requested >= ? AND (outcome IN "
            "('refused', 'undone') OR coalesce(registered, first_bundle, given_up, ended) "
            "IS NOT NULL) ORDER BY sequence DESC LIMIT ?",
            (pool, changed, KNOWN_FATES),
        )
        doubts = self._rows(
            "SELECT count(*) FROM launch WHERE pool = ? AND outcome = 'launched' "
            "AND ended IS NULL AND registered IS NULL AND first_bundle IS NULL "
            "AND given_up IS NULL AND requested >= ? UNION ALL "
            "SELECT count(*) FROM launch WHERE pool = ? AND outcome IS NULL",
            (pool, changed, pool),
        )
        accepted = self._rows(
            "SELECT settled FROM launch WHERE pool = ? AND outcome = 'launched' "
            "AND requested >= ? ORDER BY sequence DESC LIMIT 1",
            (pool, changed),
        )
        return PoolRecord(
            fates=tuple(fates),
            in_doubt=sum(row[0] for row in doubts),
            accepted=accepted[0][0] if accepted else None,
            proven=row["proven"],
            changed=changed,
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
        error_kind=later.get("error_kind"),
        settled=row["settled"],
        started=later.get("started"),
        registered=later.get("registered"),
        first_bundle=later.get("first_bundle"),
        draining=later.get("draining"),
        given_up=later.get("given_up"),
        last_words=later.get("last_words"),
    )


def _kind(error: BackendError | str | None) -> str | None:
    return type(error).__name__ if isinstance(error, BackendError) else None


class _Transaction:
    """All or nothing; takes the write lock at once, so that nothing read in it is outdated."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
