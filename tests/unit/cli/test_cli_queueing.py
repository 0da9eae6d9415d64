from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from cli_desk import Desk, Run, uuid_of

from bundles.model import UUID_PATTERN


def test_run_prints_the_uuid_that_it_made_and_nothing_else(desk: Desk, command: Run) -> None:
    done = command("run", "echo hi")
    assert (done.code, done.stderr) == (0, "")
    (document,) = desk.sent("POST", "bundles")
    attributes = document["data"][0]["attributes"]
    assert UUID_PATTERN.fullmatch(attributes["uuid"])
    assert done.stdout == attributes["uuid"] + "\n"
    assert attributes["bundle_type"] == "run"
    assert attributes["command"] == "echo hi"
    assert attributes["dependencies"] == []
    assert attributes["metadata"]["name"] == "run-echo-hi"
    assert attributes["metadata"]["request_priority"] == 0
    assert attributes["metadata"]["request_network"] is True


@pytest.mark.parametrize("long_form", [False, True])
def test_run_takes_options_in_both_forms_and_anywhere(
    desk: Desk, command: Run, long_form: bool
) -> None:
    image = "--request-docker-image" if long_form else "--image"
    options = [
        value
        for name, text in {
            "cpus": "2", "gpus": "1", "memory": "512m", "disk": "1g", "time": "90m",
            "queue": "tag=gpu", "priority": "-3",
        }.items()
        for value in (f"--request-{name}" if long_form else f"--{name}", text)
    ]  # fmt: skip
    done = command(
        "run", *options[:4], "cat x", *options[4:], image, "python:3", "--no-network",
        "--allow-failed-dependencies", "-x", "*.tmp", "--exclude-patterns", "a,b",
        "--name", "my run", "--tags", "a,b", "--tags", "c",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    metadata = desk.sent("POST", "bundles")[0]["data"][0]["attributes"]["metadata"]
    assert metadata == {
        "name": "my run",
        "description": "",
        "tags": ["a", "b", "c"],
        "allow_failed_dependencies": True,
        "request_docker_image": "python:3",
        "request_time": "90m",
        "request_memory": "512m",
        "request_disk": "1g",
        "request_cpus": 2,
        "request_gpus": 1,
        "request_queue": "tag=gpu",
        "request_priority": -3,
        "request_network": False,
        "exclude_patterns": ["*.tmp", "a,b"],
        "store": "",
    }


def test_run_puts_bundles_beside_the_command(desk: Desk, command: Run) -> None:
    first, second = desk.add(uuid_of("123"), "one"), desk.add(uuid_of("456"), "two")
    done = command("run", "data:0x123/sub", ":0x456", "x:two/a", f"two/b/{0}", "cat data/*")
    assert done.code == 0, done.stderr
    assert desk.sent("POST", "bundles")[0]["data"][0]["attributes"]["dependencies"] == [
        {"child_path": "data", "parent_uuid": first, "parent_path": "sub"},
        {"child_path": "two", "parent_uuid": second, "parent_path": ""},
        {"child_path": "x", "parent_uuid": second, "parent_path": "a"},
        {"child_path": "0", "parent_uuid": second, "parent_path": "b/0"},
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--", "cat x | wc -l"], "cat x | wc -l"),
        (["--", "grep", "-r", "two words", "data"], "grep -r 'two words' data"),
        (["---", "ls", "--all"], "ls --all"),
        (["--", "--odd"], "--odd"),
        (["--", "env", "--", "ls"], "env -- ls"),
    ],
)
def test_what_follows_two_dashes_is_the_command(
    desk: Desk, command: Run, words: list[str], expected: str
) -> None:
    desk.add(uuid_of("1"))
    done = command("run", "data:0x1", "--cpus", "1", *words)
    assert done.code == 0, done.stderr
    attributes = desk.sent("POST", "bundles")[0]["data"][0]["attributes"]
    assert attributes["command"] == expected
    assert [d["child_path"] for d in attributes["dependencies"]] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "no command"),
        (["run", "  "], "no command"),
        (["run", "a:0x1", "--"], "no command|no bundle"),
        (["run", "--cpus", "-1", "x"], "-1"),
        (["run", "--cpus", "two", "x"], "two"),
        (["run", "--memory", "2x", "x"], "2x"),
        (["run", "--memory", "-2g", "x"], "-2g"),
        (["run", "--disk", "lots", "x"], "lots"),
        (["run", "--time", "2w", "x"], "2w"),
        (["run", "--name", "a/b", "x"], "a/b"),
        (["run", "../up:0x1", "x"], r"\.\./up"),
        (["run", "/etc:0x1", "x"], "/etc"),
        (["run", "a:0x1/../b", "x"], r"\.\./b"),
        (["upload", "/no/such/file"], "/no/such/file"),
        (["upload", "/dev/null"], "/dev/null"),
        (["ls", "-n", "-1"], "-1"),
        (["ls", "--state", "done"], "done"),
        (["ls", "-o", "xml"], "xml"),
        (["wait"], "UUID"),
        (["wait", "x", "--timeout", "2x"], "2x"),
        (["cat", "x/../../etc/passwd"], "passwd"),
        (["write", "0x1", "text"], "0x1"),
        (["nosuch"], "nosuch"),
        (["ls", "--nosuch"], "nosuch"),
    ],
)
def test_bad_usage_is_one_line_and_asks_nobody(
    desk: Desk, command: Run, arguments: list[str], said: str
) -> None:
    import re

    done = command(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("bundles: ")
    assert done.stderr.count("\n") == 1
    assert re.search(said, done.stderr)
    assert desk.requests == []


@pytest.mark.parametrize("dependency", ["data:0x9", "data:nosuch", ":nosuch/x"])
def test_a_run_over_an_unknown_bundle_is_bad_usage_and_makes_nothing(
    desk: Desk, command: Run, dependency: str
) -> None:
    done = command("run", dependency, "ls")
    assert (done.code, done.stdout) == (2, "")
    assert "unknown dependency" in done.stderr
    assert desk.sent("POST", "bundles") == []


def test_a_command_that_was_not_quoted_is_explained(desk: Desk, command: Run) -> None:
    assert "quotes" in command("run", "echo", "hi").stderr


def test_two_dependencies_of_one_key_are_refused(desk: Desk, command: Run) -> None:
    desk.add(uuid_of("1"), "one")
    assert command("run", "a:one", "a:0x1", "ls").code == 2
    assert desk.sent("POST", "bundles") == []


def test_a_creation_whose_reply_is_lost_is_asked_for_again_with_its_uuid(
    desk: Desk, command: Run
) -> None:
    replies = iter([None, httpx.Response(200)])

    def answer(request: httpx.Request) -> httpx.Response:
        if next(replies) is None:
            raise httpx.ReadError("cut off")
        return desk._default(request, "bundles")

    desk.on("POST", "bundles", answer)
    done = command("run", "true")
    assert done.code == 0, done.stderr
    first, second = desk.sent("POST", "bundles")
    assert first == second
    assert first["data"][0]["attributes"]["uuid"] == done.stdout.strip()


def memoizable(desk: Desk) -> str:
    data = desk.add(uuid_of("da"), "data")
    runs = [("1", "ready", "a", 1), ("2", "ready", "a", 2), ("3", "ready", "b", 3),
            ("4", "failed", "a", 4), ("5", "running", "a", 5)]  # fmt: skip
    documents = [
        {
            "id": uuid_of(digit),
            "type": "bundles",
            "attributes": {
                "uuid": uuid_of(digit),
                "bundle_type": "run",
                "state": state,
                "command": "wc x",
                "metadata": {"created": created},
                "dependencies": [{"child_path": "x", "parent_uuid": data, "parent_path": path}],
            },
        }
        for digit, state, path, created in runs
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("command") == "wc x":
            assert json.loads(request.url.params["dependencies"]) == [
                {"child_path": "x", "parent_uuid": data}
            ]
            return httpx.Response(200, json={"data": documents})
        return desk._default(request, "bundles")

    desk.on("GET", "bundles", answer)
    return data


def test_memoize_gives_the_newest_ready_run_of_the_same(desk: Desk, command: Run) -> None:
    memoizable(desk)
    assert command("run", "-m", "x:data/a", "wc x").stdout.strip() == uuid_of("2")
    assert desk.sent("POST", "bundles") == []


def test_memoize_runs_what_has_not_run_over_that_path(desk: Desk, command: Run) -> None:
    memoizable(desk)
    done = command("run", "--memoize", "x:data/c", "wc x")
    assert len(desk.sent("POST", "bundles")) == 1
    assert done.code == 0


def test_upload_streams_a_file_under_its_name(desk: Desk, command: Run, tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_bytes(b"content")
    bodies: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        bodies.append(request)
        return httpx.Response(200)

    def expect(request: httpx.Request) -> httpx.Response:
        reply = desk._default(request, "bundles")
        uuid = json.loads(request.content)["data"][0]["attributes"]["uuid"]
        desk.on("PUT", f"bundles/{uuid}/contents/blob/", take)
        return reply

    desk.on("POST", "bundles", expect)
    done = command("upload", str(path), "--description", "d", "-t", "x")
    assert (done.code, done.stderr) == (0, "")
    attributes = desk.sent("POST", "bundles")[0]["data"][0]["attributes"]
    assert done.stdout == attributes["uuid"] + "\n"
    assert attributes["bundle_type"] == "dataset"
    assert attributes["metadata"] == {"name": "a-b.txt", "description": "d", "tags": ["x"]}
    assert bodies[0].content == b"content"
    assert bodies[0].url.params["filename"] == "a b.txt"
    assert bodies[0].url.params["finalize_on_success"] == "1"
    assert "unpack" not in bodies[0].url.params


@pytest.mark.parametrize("gone", [True, False])
def test_an_upload_that_fails_takes_its_bundle_away_and_says_so(
    desk: Desk, command: Run, tmp_path: Path, gone: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("content")

    def expect(request: httpx.Request) -> httpx.Response:
        uuid = json.loads(request.content)["data"][0]["attributes"]["uuid"]
        desk.on(
            "PUT",
            f"bundles/{uuid}/contents/blob/",
            lambda request: httpx.Response(503, text="the disk is full"),
        )
        return desk._default(request, "bundles")

    def delete(request: httpx.Request) -> httpx.Response:
        if not gone:
            raise httpx.ConnectError("gone")
        return httpx.Response(200, json={"data": json.loads(request.content)["data"]})

    desk.on("POST", "bundles", expect)
    desk.on("DELETE", "bundles", delete)
    done = command("upload", str(path))
    uuid = desk.sent("POST", "bundles")[0]["data"][0]["attributes"]["uuid"]
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "the disk is full" in done.stderr
    assert ("was removed" if gone else f"bundles rm --force {uuid}") in done.stderr
    assert [d["id"] for d in desk.sent("DELETE", "bundles")[0]["data"]] == [uuid]


def test_what_an_upload_leaves_out_is_said(desk: Desk, command: Run, tmp_path: Path) -> None:
    from bundles.cli.upload import _left_out

    (tmp_path / "in").symlink_to("file")
    (tmp_path / "file").write_text("x")
    (tmp_path / "out").symlink_to("/etc/passwd")
    assert list(_left_out(tmp_path)) == [f"{tmp_path / 'out'} is a link that leaves the directory"]


def test_kill_and_write_and_rm_are_one_request_each(desk: Desk, command: Run) -> None:
    first, second = desk.add(uuid_of("1"), "one"), desk.add(uuid_of("2"), "two")
    desk.on("POST", "bundle-actions", lambda request: httpx.Response(200, json={"data": []}))
    desk.on("DELETE", "bundles", lambda r: httpx.Response(200, json=json.loads(r.content)))
    assert command("kill", "one", "two").stdout == f"{first}\n{second}\n"
    assert command("write", "one/in/file", "hello").stdout == f"{first}\n"
    assert [
        [element["attributes"] for element in document["data"]]
        for document in desk.sent("POST", "bundle-actions")
    ] == [
        [{"type": "kill", "uuid": first}, {"type": "kill", "uuid": second}],
        [{"type": "write", "uuid": first, "subpath": "in/file", "string": "hello"}],
    ]
    assert command("rm", "--force", "two").stdout == f"{second}\n"
    assert desk.sent("DELETE", "bundles") == [{"data": [{"type": "bundles", "id": second}]}]
    assert desk.requests[-1].url.params["force"] == "1"


def test_kill_ends_the_others_when_one_has_ended(desk: Desk, command: Run) -> None:
    first, second, third = (desk.add(uuid_of(digit)) for digit in "123")

    def act(request: httpx.Request) -> httpx.Response:
        if first in request.content.decode():
            return httpx.Response(409, text=f"the bundle {first} has ended")
        return httpx.Response(200, json={"data": []})

    desk.on("POST", "bundle-actions", act)
    done = command("kill", first, second, third)
    assert (done.code, done.stdout) == (1, f"{second}\n{third}\n")
    assert done.stderr == f"bundles: the bundle {first} has ended\n"
