from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import EndCause, Job, JobState, OutOfCapacity, Unreachable
from manager.ledger import (
    KEPT_SECONDS,
    LAST_WORDS_BYTES,
    Ledger,
    Outcome,
    Pool,
    PoolRecord,
    Stage,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db", clock=clock) as opened:
        opened.describe(Pool("p", "local-process", "http://s", {"max_workers": 3}))
        yield opened


def job(key: object, state: JobState = JobState.ACTIVE, **more: object) -> Job:
    return Job(id=str(key), key=key, worker_id=str(key), state=state, **more)  # type: ignore[arg-type]


def test_an_intent_is_open_until_its_outcome_is_written(ledger: Ledger) -> None:
    first, second = ledger.intend("p", 2)
    assert [launch.key for launch in ledger.unsettled("p")] == [first, second]
    ledger.settle(first, Outcome.LAUNCHED, job_id="j1")
    assert [launch.key for launch in ledger.unsettled("p")] == [second]
    assert [launch.key for launch in ledger.running("p")] == [first]


def test_the_first_outcome_of_an_intent_stands(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.settle(key, Outcome.LAUNCHED, job_id="j")
    ledger.settle(key, Outcome.UNDONE)
    assert ledger.recent("p", 1)[0].outcome is Outcome.LAUNCHED


def test_keys_are_never_given_twice_not_even_after_a_restart(tmp_path: Path) -> None:
    keys = []
    for _ in range(3):
        with Ledger(tmp_path / "ledger.db") as ledger:
            ledger.describe(Pool("p", "local-process", "http://s", {}))
            keys += ledger.intend("p", 2)
    assert [key.sequence for key in keys] == [1, 2, 3, 4, 5, 6]
    assert len(set(map(str, keys))) == 6


def test_an_intent_says_when_a_launch_was_last_tried(ledger: Ledger, clock: Clock) -> None:
    assert ledger.last_launch("p") is None
    clock.now = 1234.0
    ledger.intend("p", 1)
    assert ledger.last_launch("p") == 1234.0


def test_an_end_is_news_once(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.settle(key, Outcome.LAUNCHED, job_id=str(key))
    ended = job(key, JobState.ENDED, ended=1500.0, exit_code=3, why="w")
    assert ledger.record_ends([ended]) == [ended]
    assert ledger.record_ends([ended]) == []
    assert ledger.running("p") == []
    assert (ledger.recent("p", 1)[0].ended, ledger.recent("p", 1)[0].exit_code) == (1500.0, 3)


def test_a_job_that_left_the_list_is_written_down_as_ended(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.settle(key, Outcome.LAUNCHED, job_id=str(key))
    ledger.record_missing("p", [key])
    assert ledger.running("p") == []


def test_what_was_intended_and_not_committed_is_as_if_never_said(ledger: Ledger) -> None:
    with pytest.raises(IndexError):
        ledger.intend("no such pool", 1)
    assert ledger.unsettled("no such pool") == []
    ledger.intend("p", 1)  # and the ledger can still be written


def test_old_launches_are_forgotten_and_those_that_run_are_not(
    ledger: Ledger, clock: Clock
) -> None:
    ended, running, refused, unsettled = ledger.intend("p", 4)
    for key in (ended, running):
        ledger.settle(key, Outcome.LAUNCHED, job_id=str(key))
    ledger.settle(refused, Outcome.REFUSED, error="no")
    ledger.record_ends([job(ended, JobState.ENDED, ended=1000.0, exit_code=0)])
    clock.now += KEPT_SECONDS + 1
    ledger.describe(Pool("p", "local-process", "http://s", {}))
    assert {launch.key for launch in ledger.recent("p", 10)} == {running, unsettled}


def test_a_reader_finds_no_ledger_where_no_manager_was(tmp_path: Path) -> None:
    assert Ledger.read_only(tmp_path / "ledger.db") is None
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_what_the_manager_wrote_and_cannot_write(
    ledger: Ledger, tmp_path: Path
) -> None:
    (key,) = ledger.intend("p", 1)
    reader = Ledger.read_only(tmp_path / "ledger.db")
    assert reader is not None
    with reader:
        assert [pool.name for pool in reader.pools()] == ["p"]
        assert [launch.key for launch in reader.unsettled("p")] == [key]
        with pytest.raises(sqlite3.OperationalError):
            reader.intend("p", 1)


def test_a_reader_reads_what_was_before_a_write_that_its_manager_did_not_survive(
    ledger: Ledger, tmp_path: Path
) -> None:
    (key,) = ledger.intend("p", 1)
    ledger._database.execute("PRAGMA cache_size = 1")  # so that it is in the file before its end
    with ledger._transaction():
        ledger._database.execute("UPDATE launch SET error = 'half'")
        ledger._database.execute("UPDATE pool SET settings = hex(zeroblob(100000))")
        for file in ("ledger.db", "ledger.db-journal"):
            shutil.copy(tmp_path / file, tmp_path / f"killed-{file}")
    reader = Ledger.read_only(tmp_path / "killed-ledger.db")
    assert reader is not None
    with reader:
        assert [launch.error for launch in reader.unsettled("p")] == [None]
        assert [launch.key for launch in reader.unsettled("p")] == [key]


def test_a_ledger_that_two_hosts_could_not_share_becomes_one_that_they_can(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as earlier:
        earlier.execute("PRAGMA journal_mode = WAL")
        earlier.execute("SELECT * FROM pool").fetchall()
        with Ledger(path) as busy:  # while another reads it stays, and works
            busy.describe(Pool("p", "local-process", "http://s", {}))
    with Ledger(path) as ledger:
        assert [pool.name for pool in ledger.pools()] == ["p"]
        (mode,) = ledger._database.execute("PRAGMA journal_mode").fetchone()
    assert mode == "delete"


def test_a_ledger_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger._database.execute("PRAGMA user_version = 99")
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        Ledger(tmp_path / "ledger.db")


VERSION_1 = """
CREATE TABLE pool (name TEXT PRIMARY KEY, backend TEXT NOT NULL, server TEXT NOT NULL,
    settings TEXT NOT NULL, sequence INTEGER NOT NULL DEFAULT 0, last_launch REAL);
CREATE TABLE launch (key TEXT PRIMARY KEY, pool TEXT NOT NULL REFERENCES pool (name),
    sequence INTEGER NOT NULL, requested REAL NOT NULL, outcome TEXT, settled REAL, job_id TEXT,
    error TEXT, ended REAL, exit_code INTEGER, why TEXT);
CREATE INDEX launch_open ON launch (pool) WHERE outcome IS NULL;
CREATE INDEX launch_by_sequence ON launch (pool, sequence);
INSERT INTO pool VALUES ('p', 'fake', 'http://s', '{}', 1, 990.0);
INSERT INTO launch VALUES
    ('p-1-0123abcd', 'p', 1, 990.0, 'launched', 991.0, 'j', NULL, NULL, NULL, NULL);
PRAGMA user_version = 1;
"""


VERSION_2 = VERSION_1.replace("why TEXT)", "why TEXT, cause TEXT)").replace(
    "NULL);\nPRAGMA user_version = 1", "NULL, NULL);\nPRAGMA user_version = 2"
)


@pytest.mark.parametrize("script", [VERSION_1, VERSION_2], ids=["1", "2"])
def test_a_ledger_of_an_earlier_version_is_carried_on(
    tmp_path: Path, clock: Clock, script: str
) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.executescript(script)
    old.close()
    reader = Ledger.read_only(path)
    assert reader is not None
    with reader:
        assert reader.recent("p", 1)[0].cause is None
        assert reader.recent("p", 1)[0].draining is None
        assert reader.record("p") == PoolRecord()
    with Ledger(path, clock=clock) as ledger:
        (launch,) = ledger.running("p")
        ended = job(launch.key, JobState.ENDED, ended=995.0, cause=EndCause.PREEMPTED)
        assert ledger.record_ends([ended]) == [ended]
        assert ledger.recent("p", 1)[0].cause is EndCause.PREEMPTED
        (second,) = ledger.intend("p", 1)
        assert second.sequence == 2
        ledger.record_draining([second], 1100.0)
        ledger.record_registered("p", {second: 1090.0})
        assert ledger.record("p").proven == 1090.0
    with Ledger(path, clock=clock) as again:
        assert again.recent("p", 2)[1].cause is EndCause.PREEMPTED
        assert again.recent("p", 2)[0].draining == 1100.0


def test_a_worker_drains_since_it_was_told_first(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.record_draining([key], 1100.0)
    ledger.record_draining([key], 1200.0)
    assert ledger.recent("p", 1)[0].draining == 1100.0


def test_a_worker_s_life_is_told_in_stages_and_when_each_was_entered(
    ledger: Ledger, clock: Clock
) -> None:
    (key,) = ledger.intend("p", 1)

    def stages() -> list[tuple[str, float]]:
        return [(str(stage), when) for stage, when in ledger.recent("p", 1)[0].stages()]

    assert stages() == [("intended", 1000.0)]
    clock.now = 1001.0
    ledger.record_lost({key: Unreachable("timed out")})
    assert stages()[-1] == ("requested", 1001.0)
    clock.now = 1002.0
    ledger.settle(key, Outcome.LAUNCHED, job_id="j")
    assert stages()[-1] == ("pending", 1002.0)
    ledger.record_started({key: 1003.0})
    ledger.record_registered("p", {key: 1010.0})
    ledger.record_registered("p", {key: 1011.0})
    assert stages()[-1] == ("registered", 1010.0)
    ledger.record_first_bundle({key: 1020.0})
    ledger.record_draining([key], 1030.0)
    ledger.record_ends([job(key, JobState.ENDED, ended=1040.0, exit_code=0)])
    assert stages() == [
        ("intended", 1000.0),
        ("pending", 1002.0),
        ("registered", 1010.0),
        ("working", 1020.0),
        ("draining", 1030.0),
        ("ended", 1040.0),
    ]
    assert ledger.recent("p", 1)[0].stage is Stage.ENDED


def test_what_was_refused_is_kept_with_the_kind_of_its_error(ledger: Ledger) -> None:
    first, second = ledger.intend("p", 2)
    ledger.settle(first, Outcome.REFUSED, error=OutOfCapacity("none left"))
    ledger.record_lost({second: Unreachable("timed out")})
    ledger.settle(second, Outcome.UNDONE)
    kept = {launch.key: (launch.error, launch.error_kind) for launch in ledger.recent("p", 2)}
    assert kept == {first: ("none left", "OutOfCapacity"), second: ("timed out", "Unreachable")}


def test_the_last_words_of_a_worker_are_kept_and_not_the_first(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.record_given_up(key, 1100.0, "é" * LAST_WORDS_BYTES + "the end")
    launch = ledger.recent("p", 1)[0]
    assert launch.given_up == 1100.0
    assert launch.last_words is not None
    assert launch.last_words.endswith("ééthe end")
    assert len(launch.last_words.encode()) <= LAST_WORDS_BYTES


def test_a_pool_s_record_tells_fates_and_doubts(ledger: Ledger, clock: Clock) -> None:
    ended, lost, pending, refused, come = ledger.intend("p", 5)
    clock.now = 1005.0
    for key in (ended, pending, come):
        ledger.settle(key, Outcome.LAUNCHED, job_id=str(key))
    ledger.settle(refused, Outcome.REFUSED, error=OutOfCapacity("none left"))
    ledger.record_lost({lost: Unreachable("timed out")})
    ledger.record_ends([job(ended, JobState.ENDED, ended=1500.0, cause=EndCause.FAILED)])
    assert ledger.record("p").proven is None
    ledger.record_registered("p", {come: 1600.0})
    record = ledger.record("p")
    assert [launch.key for launch in record.fates] == [come, refused, ended]
    assert (record.in_doubt, record.accepted, record.proven) == (2, 1005.0, 1600.0)
    ledger.record_given_up(pending, 1700.0, "")
    assert ledger.record("p").in_doubt == 1


def test_nothing_is_known_of_a_pool_whose_workers_have_changed(
    ledger: Ledger, clock: Clock
) -> None:
    first, second = ledger.intend("p", 2)
    ledger.settle(first, Outcome.LAUNCHED, job_id="j")
    ledger.settle(second, Outcome.REFUSED, error=OutOfCapacity("none left"))
    ledger.record_registered("p", {first: 1010.0})
    clock.now = 1100.0
    ledger.describe(Pool("p", "local-process", "http://s", {"max_workers": 30}))
    assert ledger.record("p").proven == 1010.0, "more of the same"
    ledger.describe(Pool("p", "local-process", "http://s", {"max_workers": 30, "image": "i"}))
    assert ledger.record("p") == PoolRecord(changed=1100.0)


def test_a_worker_that_left_well_proves_its_pool(ledger: Ledger) -> None:
    (key,) = ledger.intend("p", 1)
    ledger.settle(key, Outcome.LAUNCHED, job_id="j")
    end = job(key, JobState.ENDED, ended=1500.0, exit_code=0, cause=EndCause.FINISHED)
    ledger.record_ends([end])
    assert ledger.record("p").proven == 1500.0
