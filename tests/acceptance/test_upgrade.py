"""A home of an earlier version, carried on by this one."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import Managers
from serving import Server

UPGRADES = Path(__file__).parent / "upgrades"
TOKEN = "a-token-of-the-earlier-version"


def make_home(version: str, home: Path) -> None:
    """The home as that version left it."""
    left = UPGRADES / version
    home.mkdir(mode=0o700)
    shutil.copytree(left / "contents", home / "contents")
    (home / "journal").mkdir()
    shutil.copy(left / "journal.jsonl", home / "journal" / "local-process.jsonl")
    shutil.copy(left / "owner", home / "owner")
    (home / "token").write_text(TOKEN)
    (home / "token").chmod(0o600)
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    for name, script in (("ledger.db", "ledger.sql"), ("bundles.sqlite", "bundles.sql")):
        text = (left / script).read_text()
        text = re.sub(r"'\w+'(,'0','home',NULL\))", rf"'{digest}'\1", text)
        database = sqlite3.connect(home / name)
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(text)
        database.close()


@pytest.fixture(params=sorted(path.name for path in UPGRADES.iterdir() if path.is_dir()))
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(version: str, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    make_home(version, made.home.path)
    yield made
    if made.running:
        assert made.stop() == 0


@pytest.fixture
def managers(server: Server) -> Iterator[Managers]:
    made = Managers(server)
    yield made
    made.close()


def test_bundles_of_an_earlier_version_are_there_and_those_that_waited_are_run(
    server: Server, managers: Managers
) -> None:
    server.start()
    assert server.output("cat", "greeting") == "hello\n"
    assert server.output("cat", "done/stdout") == "done\n"
    options = ("--min", "0", "--worker-idle-seconds", "1")
    manager = managers.start(*options, stand_ins=False)
    server.output("wait", "waiting")
    assert server.output("cat", "waiting/stdout") == "hello\n"
    assert managers.kill(manager, 15) == 0
    pool = managers.json("status", "-o", "json")["pools"][0]
    assert pool["launched"] == 2, "one of them by the earlier version"


def test_what_an_earlier_version_decided_is_still_explained_and_replayed(
    version: str, server: Server, managers: Managers
) -> None:
    server.start()
    launched = re.search(r"local-process-1-\w+", (UPGRADES / version / "ledger.sql").read_text())
    assert launched
    said = managers.command("explain", launched.group())
    assert said.returncode == 0, said.stderr
    assert "1 bundle staged" in said.stdout
    journal = server.home.path / "journal" / "local-process.jsonl"
    summary = managers.json("replay", str(journal), "-o", "json")["summary"]
    assert summary["was"]["launched"] == 1
    assert summary["other_rule_ticks"] == 0


def test_what_a_later_version_left_is_refused_in_a_line_and_not_touched(
    server: Server, managers: Managers
) -> None:
    home = server.home.path
    ledger, bundles = home / "ledger.db", home / "bundles.sqlite"
    _execute(ledger, "PRAGMA user_version = 99")
    server.start()
    before = ledger.read_bytes()
    refused = managers.command("local-process", "--once")
    assert refused.returncode == 1
    assert "of a later version (99)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert ledger.read_bytes() == before
    assert server.stop() == 0
    _execute(bundles, "UPDATE schema_version SET version = 99")
    before = bundles.read_bytes()
    refused = server.command("serve", "--port", "0")
    assert refused.returncode == 2
    assert "of version 99" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert bundles.read_bytes() == before


def _execute(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()
