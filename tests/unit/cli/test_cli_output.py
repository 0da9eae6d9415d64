from __future__ import annotations

import json

import httpx
import pytest
from cli_desk import Desk, Run, uuid_of

from bundles.cli.output import age, bundle_document, duration, printable
from bundles.model import Bundle


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert printable("a\x1b[31mb\nc\td\u202e") == "a\\x1b[31mb c d\\x202e"


@pytest.mark.parametrize(
    ("created", "shown"),
    [(1000, "0s"), (941, "59s"), (880, "2m"), (1000 - 7200, "2h"), (1000 - 9 * 86400, "9d"),
     (2000, "0s"), (None, ""), ("x", "")],
)  # fmt: skip
def test_an_age_is_shown_in_its_largest_unit(created: object, shown: str) -> None:
    assert age(created, 1000.0) == shown


def test_no_time_is_shown_as_nothing() -> None:
    assert duration(None) == ""
    assert duration(3.25) == "3.2s"


def test_a_bundle_is_shown_to_programs_with_its_fields_at_the_top() -> None:
    bundle = Bundle(
        uuid=uuid_of("1"),
        bundle_type="run",
        state="failed",
        command="false",
        owner_id="7",
        owner_name="ann",
        metadata={"name": "n", "created": 5, "exitcode": 1, "failure_message": "Exit code 1"},
    )
    document = json.loads(json.dumps(bundle_document(bundle)))
    assert document["uuid"] == uuid_of("1")
    assert document["name"] == "n"
    assert document["state"] == "failed"
    assert document["owner"] == "ann"
    assert document["command"] == "false"
    assert document["created"] == 5
    assert document["exitcode"] == 1
    assert document["failure_message"] == "Exit code 1"
    assert document["metadata"]["name"] == "n"


def test_a_list_is_readable_at_80_columns(desk: Desk, command: Run) -> None:
    for digit in "123":
        desk.add(
            uuid_of(digit * 3),
            "a-name-that-is-rather-long-" + digit * 30,
            state="worker_offline",
            command="python train.py --with 'many words' " * 10,
            metadata={"created": 1, "time": 1234.5},
        )
    shown = command("ls")
    assert shown.code == 0
    lines = shown.stdout.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("0x") and " worker_offline " in line for line in lines[1:])
    assert "python" in lines[1]
    assert "\x1b" not in shown.stdout


def test_a_list_asks_for_the_newest_50(desk: Desk, command: Run) -> None:
    assert command("ls", "name=a", "--state", "ready", "--state", "failed").code == 0
    assert desk.requests[0].url.params.get_list("keywords") == [
        "name=a",
        "state=ready,failed",
        ".limit=50",
        "id=.sort-",
    ]


def test_a_list_of_all_has_the_newest_first(desk: Desk, command: Run) -> None:
    desk.add(uuid_of("1"))
    desk.add(uuid_of("2"))
    shown = json.loads(command("ls", "-n", "0", "-o", "json").stdout)
    assert [bundle["uuid"] for bundle in shown] == [uuid_of("2"), uuid_of("1")]


def test_a_list_leaves_paging_and_sorting_to_who_asks_for_it(desk: Desk, command: Run) -> None:
    command("ls", ".limit=3", "time=.sort")
    assert desk.requests[0].url.params.get_list("keywords") == [".limit=3", "time=.sort"]


def test_a_count_is_a_number(desk: Desk, command: Run) -> None:
    desk.on("GET", "bundles", lambda request: httpx.Response(200, json={"meta": {"result": 7}}))
    assert command("ls", "state=ready", ".count").stdout == "7\n"


def test_no_bundles_are_an_empty_list_for_programs(desk: Desk, command: Run) -> None:
    assert json.loads(command("ls", "-o", "json").stdout) == []


def test_info_shows_one_as_an_object_and_several_as_a_list(desk: Desk, command: Run) -> None:
    first, second = desk.add(uuid_of("1"), "one"), desk.add(uuid_of("2"), "two")
    assert json.loads(command("info", first, "-o", "json").stdout)["uuid"] == first
    shown = json.loads(command("info", second, first, "-o", "json").stdout)
    assert [bundle["uuid"] for bundle in shown] == [second, first]


def test_info_shows_the_whole_uuid_and_every_field(desk: Desk, command: Run) -> None:
    uuid = desk.add(
        uuid_of("1"),
        "one",
        command="echo [red]x[/red]",
        metadata={"request_cpus": 2, "staged_status": "no worker fits: it asks for 2 cpus"},
    )
    shown = command("info", "one").stdout
    assert uuid in shown
    assert "echo [red]x[/red]" in shown
    assert "request_cpus" in shown
    assert "no worker fits: it asks for 2 cpus" in shown


def test_info_shows_the_values_of_fields_alone(desk: Desk, command: Run) -> None:
    desk.add(uuid_of("1"), "one", metadata={"request_cpus": 2, "tags": ["a", "b"]})
    assert command("info", "one", "-f", "state,request_cpus,tags").stdout == "ready\t2\ta b\n"
    wrong = command("info", "one", "-f", "nosuch")
    assert wrong.code == 2
    assert "nosuch" in wrong.stderr


def test_a_missing_bundle_among_several_is_named(desk: Desk, command: Run) -> None:
    desk.add(uuid_of("1"))
    shown = command("info", uuid_of("1"), uuid_of("2"))
    assert (shown.code, shown.stdout) == (1, "")
    assert uuid_of("2") in shown.stderr
