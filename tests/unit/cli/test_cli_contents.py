from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cli_desk import Desk, Run, uuid_of

from bundles.archive import pack

UUID = uuid_of("abc")
BLOB = f"bundles/{UUID}/contents/blob/"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


class Stream(httpx.SyncByteStream):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


def directory(desk: Desk, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a.txt").write_text("content")
    headers = {"Content-Type": "application/gzip", "Target-Type": "directory"}
    content = b"".join(pack(source))
    desk.on("GET", BLOB, lambda request: httpx.Response(200, content=content, headers=headers))


def file(desk: Desk, content: bytes = b"content", path: str = "") -> None:
    headers = {"Target-Type": "file"}
    answer = lambda request: httpx.Response(200, content=content, headers=headers)  # noqa: E731
    desk.on("GET", BLOB + path, answer)


def test_a_directory_is_downloaded_under_the_bundles_name(
    desk: Desk, command: Run, here: Path, tmp_path: Path
) -> None:
    desk.add(UUID, "corpus")
    directory(desk, tmp_path)
    done = command("download", "0xabc")
    assert (done.code, done.stdout) == (0, "corpus\n")
    assert (here / "corpus" / "sub" / "a.txt").read_text() == "content"
    assert os.listdir(here) == ["corpus"]


def test_a_file_is_downloaded_under_its_own_name_or_where_one_says(
    desk: Desk, command: Run, here: Path
) -> None:
    desk.add(UUID, "corpus")
    file(desk, path="sub/a.txt")
    assert command("download", "corpus/sub/a.txt").stdout == "a.txt\n"
    assert command("download", "corpus/sub/a.txt", "-o", "b.txt").stdout == "b.txt\n"
    assert (here / "a.txt").read_bytes() == (here / "b.txt").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_bundle_cannot_choose_a_place_outside(
    desk: Desk, command: Run, here: Path, name: str
) -> None:
    desk.add(UUID, name)
    file(desk)
    assert command("download", UUID).stdout == f"{UUID}\n"
    assert os.listdir(here) == [UUID]


def test_what_is_there_is_kept_unless_forced(
    desk: Desk, command: Run, here: Path, tmp_path: Path
) -> None:
    desk.add(UUID, "corpus")
    directory(desk, tmp_path)
    (here / "corpus").mkdir()
    (here / "corpus" / "mine").write_text("mine")
    refused = command("download", "corpus")
    assert refused.code == 2
    assert "corpus" in refused.stderr
    assert (here / "corpus" / "mine").exists()
    assert command("download", "corpus", "--force").code == 0
    assert os.listdir(here / "corpus") == ["sub"]
    assert os.listdir(here) == ["corpus"]


def test_a_download_into_no_directory_is_refused_before_asking(
    desk: Desk, command: Run, here: Path
) -> None:
    assert command("download", UUID, "-o", "no/such/x").code == 2
    assert desk.requests == []


@pytest.mark.parametrize(
    ("fault", "code"), [(httpx.ReadError("cut off"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_download_that_is_cut_off_leaves_nothing(
    desk: Desk, command: Run, here: Path, fault: BaseException, code: int
) -> None:
    desk.add(UUID, "corpus")

    def chunks() -> Iterator[bytes]:
        yield b"some bytes"
        raise fault

    desk.on("GET", BLOB, lambda request: httpx.Response(200, stream=Stream(chunks())))
    done = command("download", "corpus")
    assert done.code == code
    assert os.listdir(here) == []


def test_an_archive_that_leaves_its_place_is_refused_and_leaves_nothing(
    desk: Desk, command: Run, here: Path
) -> None:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../evil"))
    desk.add(UUID, "corpus")
    headers = {"Target-Type": "directory"}
    content = stream.getvalue()
    desk.on("GET", BLOB, lambda request: httpx.Response(200, content=content, headers=headers))
    done = command("download", "corpus")
    assert done.code != 0
    assert "../evil" in done.stderr
    assert os.listdir(here) == []
    assert not (here.parent / "evil").exists()


def contents_info(desk: Desk, document: dict[str, object], path: str = "") -> None:
    desk.on(
        "GET",
        f"bundles/{UUID}/contents/info/{path}",
        lambda request: httpx.Response(200, json={"data": document}),
    )


TREE: dict[str, object] = {
    "name": "corpus",
    "type": "directory",
    "size": 9,
    "perm": 493,
    "contents": [
        {"name": "sub", "type": "directory", "size": 4, "perm": 493},
        {"name": "a.txt", "type": "file", "size": 2048, "perm": 420},
        {"name": "l", "type": "link", "size": 1, "perm": 511, "link": "a.txt"},
    ],
}


def test_cat_lists_a_directory(desk: Desk, command: Run) -> None:
    desk.add(UUID, "corpus")
    contents_info(desk, TREE)
    lines = command("cat", "corpus").stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a.txt", "644", "2k"],
        ["l", "→", "a.txt", "777"],
        ["sub/", "755"],
    ]
    shown = json.loads(command("cat", "corpus", "-o", "json").stdout)
    assert shown[0] == {"name": "a.txt", "type": "file", "size": 2048, "perm": 420, "link": None}
    assert [entry["name"] for entry in shown] == ["a.txt", "l", "sub"]


def test_logs_says_when_there_is_nothing_and_why(desk: Desk, command: Run) -> None:
    desk.add(UUID, "run", state="failed", metadata={"failure_message": "its parent 0x12 failed"})
    desk.on("GET", BLOB + "stdout", lambda request: httpx.Response(404, text="no such file"))
    done = command("logs", "run")
    assert (done.code, done.stdout) == (0, "")
    assert "its parent 0x12 failed" in done.stderr


def test_logs_are_of_runs(desk: Desk, command: Run) -> None:
    desk.add(UUID, "corpus", bundle_type="dataset")
    done = command("logs", "corpus")
    assert done.code == 2
    assert "not a run" in done.stderr


def test_wait_prints_which_is_not_ready_and_exits_with_1(desk: Desk, command: Run) -> None:
    first = desk.add(uuid_of("1"))
    second = desk.add(uuid_of("2"), state="failed", metadata={"failure_message": "Exit code 3"})
    done = command("wait", first, second)
    assert (done.code, done.stdout) == (1, f"{first} ready\n{second} failed Exit code 3\n")
    assert done.stderr == ""
    assert command("wait", first).code == 0
    shown = json.loads(command("wait", first, second, "-o", "json").stdout)
    assert [bundle["state"] for bundle in shown] == ["ready", "failed"]


def test_wait_gives_up_after_its_time(desk: Desk, command: Run) -> None:
    uuid = desk.add(uuid_of("1"), state="staged")
    done = command("wait", uuid, "--timeout", "0")
    assert (done.code, done.stdout) == (1, "")
    assert f"{uuid} is staged" in done.stderr


def test_a_refused_token_is_one_line(desk: Desk, command: Run) -> None:
    desk.on("GET", "bundles", lambda request: httpx.Response(401, text="the token has expired"))
    done = command("ls")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "bundles: the token has expired\n"


def test_an_unforeseen_error_is_one_line_unless_asked_for_more(desk: Desk, command: Run) -> None:
    desk.on("GET", "bundles", lambda request: httpx.Response(200, content=b"[]"))
    done = command("ls")
    assert done.code == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" in command("ls", "--verbose").stderr
