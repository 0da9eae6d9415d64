from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest

from worker.reads import Answer, answer
from worker.trees import remove_tree

UUID = "0x" + "1" * 32
INFO = {"type": "get_target_info", "depth": 2}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run's directory with a secret beside it."""
    directory = tmp_path / "run"
    (directory / "d" / "e").mkdir(parents=True)
    (directory / "d" / "f").write_text("own")
    (directory / "d" / "e" / "deep").write_text("deeper")
    (directory / "inside").symlink_to("d")
    (directory / "outside").symlink_to(tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "f").write_text("of another")
    return directory


def info(directory: Path, path: str = "", depth: int = 2) -> Any:
    document = answer(directory, UUID, path, {**INFO, "depth": depth}).document
    assert document is not None
    return document.get("target_info") or document


def content(said: Answer) -> bytes:
    return said.content if isinstance(said.content, bytes) else b"".join(said.content)


def test_a_tree_is_described_as_deep_as_was_asked(directory: Path) -> None:
    whole = info(directory)
    assert (whole["name"], whole["type"]) == (UUID, "directory")
    by_name = {entry["name"]: entry for entry in whole["contents"]}
    assert {name: entry["type"] for name, entry in by_name.items()} == {
        "d": "directory",
        "inside": "link",
        "outside": "link",
    }
    assert [entry["name"] for entry in by_name["d"]["contents"]] == ["e", "f"]
    assert "contents" not in by_name["d"]["contents"][0]
    assert "contents" not in info(directory, "d", depth=0)
    assert info(directory, "d/f")["size"] == 3
    assert [entry["name"] for entry in info(directory, "inside", depth=1)["contents"]] == ["e", "f"]


def test_a_tree_is_described_however_deep_it_is(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("n", dir_fd=descriptor)
        inside = os.open("n", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inside
    os.close(descriptor)
    try:
        assert info(directory, depth=10_000)["type"] == "directory"
    finally:
        remove_tree(directory)  # which pytest could not


def test_names_that_are_no_text_are_described_all_the_same(directory: Path) -> None:
    (directory / "d" / os.fsdecode(b"a\xffb")).symlink_to(os.fsdecode(b"\xfe"))
    entry = info(directory, "d", depth=1)["contents"][0]
    assert (entry["name"], entry["link"]) == ("a\N{REPLACEMENT CHARACTER}b", "\ufffd")
    (directory / "d" / os.fsdecode(b"a\xffb")).unlink()
    os.mkfifo(directory / "d" / os.fsdecode(b"a\xffb"))
    (directory / "pipe").symlink_to("d/" + os.fsdecode(b"a\xffb"))
    for said in (
        info(directory, "d"),
        answer(directory, UUID, "pipe", {"type": "stream_file"}).document,
    ):
        orjson.dumps(said)  # which takes text only


def test_what_vanishes_while_it_is_described_is_left_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: [*real(place), "gone"])
    assert [entry["name"] for entry in info(directory, "d", depth=1)["contents"]] == ["e", "f"]


def test_a_section_may_be_said_to_be_of_any_length(directory: Path) -> None:
    for length in (0, 2, 10**13, 10**30):
        asked = {"type": "read_file_section", "offset": 1, "length": length}
        assert gzip.decompress(content(answer(directory, UUID, "d/f", asked))) == b"wn"[:length]


def test_of_a_large_section_only_a_piece_is_in_memory(directory: Path) -> None:
    with (directory / "large").open("wb") as file:
        file.truncate(1024**3)
    asked = {"type": "read_file_section", "offset": 0, "length": 1024**3}
    tracemalloc.start()
    try:
        said = answer(directory, UUID, "large", asked)
        assert not isinstance(said.content, bytes)
        next(iter(said.content))
        assert tracemalloc.get_traced_memory()[1] < 100 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", ["outside", "outside/f", "none"])
@pytest.mark.parametrize(
    "asked",
    [
        INFO,
        {"type": "stream_directory"},
        {"type": "stream_file"},
        {"type": "read_file_section", "offset": 0, "length": 9},
    ],
)
def test_what_leads_out_is_not_found(directory: Path, path: str, asked: dict[str, Any]) -> None:
    said = answer(directory, UUID, path, asked)
    assert said.document is not None
    assert said.document["error_code"] == 404
    assert str(directory) not in said.document["error_message"]


def test_a_directory_that_becomes_a_link_before_it_is_sent_leads_nowhere(directory: Path) -> None:
    said = answer(directory, UUID, "d", {"type": "stream_directory"})
    (directory / "d").rename(directory / "elsewhere")
    (directory / "d").symlink_to(directory.parent / "secrets")
    with tarfile.open(fileobj=io.BytesIO(content(said))) as archive:
        file = archive.extractfile("f")
        assert file is not None
        assert file.read() == b"own"


def test_a_file_that_becomes_a_link_before_it_is_sent_leads_nowhere(directory: Path) -> None:
    said = answer(directory, UUID, "d/f", {"type": "stream_file"})
    (directory / "d" / "f").unlink()
    (directory / "d" / "f").symlink_to(directory.parent / "secrets" / "f")
    assert gzip.decompress(content(said)) == b"own"
