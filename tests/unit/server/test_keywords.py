from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, insert

from bundles.errors import UsageError
from bundles.server import queries, schema
from bundles.server.accounts import Accounts, Caller, User
from bundles.server.database import Database
from bundles.server.keywords import Condition, read_keywords

ROOT = User("0", "admin", is_root=True)
ANN = User("1", "ann")
ACCOUNTS = Accounts.of([ROOT, ANN], [], [])


def bundle(number: int, **more: Any) -> dict[str, Any]:
    metadata = {"name": f"b{number}", "request_queue": "", **more.pop("metadata", {})}
    return {
        "id": number,
        "uuid": f"0x{number:032x}",
        "owner_id": "0",
        "bundle_type": "run",
        "command": "true",
        "args": "",
        "name": metadata["name"],
        "state": "staged",
        "created": 1000.0 + number,
        "metadata": orjson.dumps(metadata).decode(),
        "fingerprint": "",
        "cpus": 1,
        "gpus": 0,
        "memory_bytes": 1,
        "disk_bytes": 0,
        "time_seconds": 0.0,
        "queue": "",
        "claim": 0,
        **more,
    }


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    database = Database(None, tmp_path)
    database.migrate()
    with database.writer().begin():
        database.writer().execute(
            insert(schema.bundle),
            [
                bundle(1, metadata={"name": "alpha", "request_queue": "tag=gpu", "priority": 2}),
                bundle(2, metadata={"request_queue": "gpu", "priority": 10, "frozen": True}),
                bundle(3, state="ready", owner_id="1", metadata={"name": "alphabet"}),
                bundle(4, state="failed", cpus=4, metadata={"name": "100%_sure"}),
            ],
        )
    with database.read() as reader:
        yield reader
    database.close()


def search(connection: Connection, *keywords: str, user: User = ROOT) -> list[int]:
    caller = Caller(user, False, "")
    found = queries.find(connection, ACCOUNTS, caller, read_keywords(keywords))
    return [row["id"] for row in found.rows]


@pytest.mark.parametrize(
    ("keywords", "ids"),
    [
        ((), [1, 2, 3, 4]),
        (("state=staged",), [1, 2]),
        (("state=ready,failed",), [3, 4]),
        (("state=%a%ed",), [1, 2, 4]),
        (("name=alpha.*",), [1, 3]),
        (("name=alpha",), [1]),
        (("request_queue=gpu,tag=gpu",), [1, 2]),
        (("request_queue=",), [3, 4]),
        (("priority=2",), [1]),
        (("frozen=true",), [2]),
        (("frozen=True",), [2]),
        (("nonsense=1",), []),
        (("id=2,3",), [2, 3]),
        ((f"uuid=0x{3:032x}",), [3]),
        (("0x" + "0" * 31 + "4",), [4]),
        (("alph",), [1, 3]),
        (("100%_sure".replace("%", ""),), []),
        (("_sure",), [4]),
        ((".mine",), [1, 2, 4]),
        (("owner=ann",), [3]),
        (("owner=ann,admin",), [1, 2, 3, 4]),
        (("owner=nobody",), []),
        ((".shared",), []),
        ((".floating",), [1, 2, 3, 4]),
        ((".last",), [4]),
        ((".last", ".limit=2"), [4, 3]),
        ((".limit=2",), [1, 2]),
        ((".offset=3",), [4]),
        ((".limit=1", ".offset=1"), [2]),
        ((".limit=0",), []),
        ((".before=1003",), [1, 2]),
        ((".after=1003",), [3, 4]),
        ((".after=1970-01-01",), [1, 2, 3, 4]),
        (("id=.sort-",), [4, 3, 2, 1]),
        (("name=.sort",), [4, 1, 3, 2]),
        (("state=staged", "priority=.sort-"), [2, 1]),
    ],
)
def test_keywords_select(connection: Connection, keywords: tuple[str, ...], ids: list[int]) -> None:
    assert search(connection, *keywords) == ids


def test_a_user_finds_only_their_own(connection: Connection) -> None:
    assert search(connection, user=ANN) == [3]
    assert search(connection, "owner=admin", user=ANN) == []


def test_there_is_no_limit_unless_one_is_asked_for(connection: Connection, tmp_path: Path) -> None:
    database = Database(None, tmp_path)
    with database.writer().begin():
        rows = [bundle(number) for number in range(100, 1300)]
        database.writer().execute(insert(schema.bundle), rows)
    database.close()
    assert len(search(connection, "state=staged")) == 1202


def test_bundles_are_counted_summed_and_grouped(connection: Connection) -> None:
    caller = Caller(ROOT, False, "")

    def ask(function: Any, *keywords: str) -> Any:
        return function(connection, ACCOUNTS, caller, read_keywords(keywords))

    assert ask(queries.count, "state=staged", ".count") == 2
    assert ask(queries.total, "priority=.sum") == 12
    shapes = ask(queries.shapes, ".shapes")
    assert [(shape["cpus"], shape["count"], shape["oldest"]) for shape in shapes] == [
        (1, 3, 1001.0),
        (4, 1, 1004.0),
    ]


@pytest.mark.parametrize(
    "keyword",
    [".limit=x", ".limit=-1", ".offset=", ".nonsense", ".before=yesterday", "=x", "a b=1"],
)
def test_a_keyword_that_makes_no_sense_is_named(keyword: str) -> None:
    with pytest.raises(UsageError, match="keyword"):
        read_keywords([keyword])


def test_a_number_is_asked_for_by_a_number(connection: Connection) -> None:
    with pytest.raises(UsageError, match="id"):
        search(connection, "id=abc")


def test_a_key_cannot_reach_out_of_its_place_in_the_query() -> None:
    with pytest.raises(UsageError):
        read_keywords(['x") or 1=1 --=1'])


def test_a_value_with_an_equals_sign_is_a_list_of_values() -> None:
    assert read_keywords(["request_queue=t,tag=t"]).conditions == (
        Condition("request_queue", ("t", "tag=t")),
    )


def test_dates_are_read_as_utc() -> None:
    moment = read_keywords([".after=2026-01-01"]).created_after
    assert moment is not None
    assert time.gmtime(moment)[:4] == (2026, 1, 1, 0)
