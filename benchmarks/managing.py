"""A manager that runs, beside a server of its own: how soon it acts, and what it takes."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import psutil

from benchmarks.stand import Stand

MILLION = 1_000_000
LOOKS = 5
REACTIONS = 20
QUIET_SECONDS = 10.0
PATIENCE_SECONDS = 60.0


def million_staged() -> tuple[float, float]:
    """Seconds of the manager's question to a server with a million staged bundles of 500 shapes;
    and of the same without the index that is made for it.

    They are written into its database beside it, since nobody waits for a million uploads.
    """
    with Stand() as stand:
        stand.submit(["true"], request_gpus=1)
        path = stand.home.path / "bundles.sqlite"
        _fill(path)
        with_index = _counting_seconds(stand)
        with sqlite3.connect(path, timeout=PATIENCE_SECONDS) as database:
            database.execute("DROP INDEX bundle_staged")
        database.close()
        return with_index, _counting_seconds(stand)


def _counting_seconds(stand: Stand) -> float:
    seconds = []
    for _ in range(LOOKS):
        begin = time.perf_counter()
        found = sum(shape.count for shape in stand.client.shapes(["state=staged"]))
        seconds.append(time.perf_counter() - begin)
        if found != MILLION + 1:
            raise RuntimeError(f"{found} bundles are staged")
    return sorted(seconds)[LOOKS // 2]


def _fill(path: Path) -> None:
    """Like the one bundle that there is, but for what each asks for."""
    with sqlite3.connect(path, timeout=PATIENCE_SECONDS) as database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM bundle").fetchone())
        values = ", ".join(f":{column}" for column in row)
        database.executemany(
            f"INSERT INTO bundle VALUES ({values})",
            (
                row
                | {
                    "id": row["id"] + 1 + number,
                    "uuid": f"0x{number:032x}",
                    "cpus": 1 + number % 5,
                    "memory_bytes": (1 + number % 100) * 1024**3,
                }
                for number in range(MILLION)
            ),
        )
    database.close()


def idle_memory_bytes() -> int:
    """Resident memory of a manager with metrics, for a while after it had something to do."""
    with Stand() as stand:
        manager = stand.start(
            "manager", "local-process", "--min", "0", "--max", "1", "--metrics-port", "0",
            "--worker-idle-seconds", "1", "--sleep-time", "0.5",
        )  # fmt: skip
        stand.drain(["true"])
        threading.Event().wait(QUIET_SECONDS)
        return int(psutil.Process(manager.pid).memory_info().rss)


def reactions_seconds() -> list[float]:
    """From the upload of a bundle to the backend's having been asked for a worker, each time with
    no worker there. The server tells the manager, which looks by itself once an hour."""
    seconds = []
    with Stand() as stand:
        stand.start(
            "manager", "local-process", "--min", "0", "--max", "1", "--sleep-time", "3600",
            "--worker-idle-seconds", "1",
        )  # fmt: skip
        for _ in range(REACTIONS):
            begin = time.time()
            stand.drain(["true"])
            seconds.append(_settled(stand.home.path / "ledger.db") - begin)
            _wait_until_gone(stand)
    return seconds


def _settled(ledger: Path) -> float:
    """When the backend had answered the last launch; the clock is that of this machine."""
    database = sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS)
    try:
        query = "SELECT settled FROM launch ORDER BY requested DESC LIMIT 1"
        return float(database.execute(query).fetchone()[0])
    finally:
        database.close()


def _wait_until_gone(stand: Stand) -> None:
    """Return when no worker of the stand's home runs any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(str(stand.home.path) in " ".join(_words(p)) for p in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise RuntimeError("a worker does not leave")
        threading.Event().wait(0.1)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
