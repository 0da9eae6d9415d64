from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from manager.pools_file.reading import PoolsFile, load
from manager.pools_file.watched import WatchedFile

POOL = '[[pools]]\nname = "p"\nbackend = "local-process"\nmax-workers = {}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pools.toml"
    path.write_text(POOL.format(1))
    return path


@pytest.fixture
def watched(path: Path) -> WatchedFile:
    return WatchedFile(load(path), {})


def maximum(file: PoolsFile | None) -> int | None:
    return None if file is None else file.pools[0].settings["max_workers"]


def test_a_file_that_does_not_change_is_no_news(watched: WatchedFile) -> None:
    assert [watched.look() for _ in range(3)] == [None] * 3
    assert watched.look(asked=True) is None
    assert watched.problems == ()


def test_a_change_is_news_once_two_looks_have_found_it(path: Path, watched: WatchedFile) -> None:
    path.write_text(POOL.format(2))
    assert watched.look() is None
    assert maximum(watched.look()) == 2
    assert watched.look() is None


def test_who_asks_is_told_at_once(path: Path, watched: WatchedFile) -> None:
    path.write_text(POOL.format(2))
    assert maximum(watched.look(asked=True)) == 2


def test_a_file_that_is_half_written_is_not_taken_for_one_with_fewer_pools(
    path: Path, watched: WatchedFile
) -> None:
    both = POOL.format(1) + POOL.format(2).replace('"p"', '"q"')
    path.write_text(both[: both.index("[[pools]]", 1)].replace("= 1", "= 3"))
    assert watched.look() is None
    path.write_text(both)
    assert watched.look() is None
    file = watched.look()
    assert file is not None
    assert [pool.name for pool in file.pools] == ["p", "q"]


def test_a_change_of_the_same_length_at_the_same_time_is_seen(
    path: Path, watched: WatchedFile
) -> None:
    before = path.stat()
    path.write_text(POOL.format(2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    watched.look()
    assert maximum(watched.look()) == 2


def test_a_file_that_is_replaced_is_seen(path: Path, watched: WatchedFile) -> None:
    other = path.with_suffix(".new")
    other.write_text(POOL.format(2))
    os.replace(other, path)
    watched.look()
    assert maximum(watched.look()) == 2


def test_the_links_of_a_configmap_are_followed(tmp_path: Path) -> None:
    """Kubernetes swaps `..data`, a link to a directory, and leaves the file's own link alone."""
    for number in (1, 2):
        version = tmp_path / f"..version-{number}"
        version.mkdir()
        (version / "pools.toml").write_text(POOL.format(number))
    (tmp_path / "..data").symlink_to("..version-1")
    (tmp_path / "pools.toml").symlink_to("..data/pools.toml")
    watched = WatchedFile(load(tmp_path / "pools.toml"), {})
    assert watched.look() is None
    (tmp_path / "..data-new").symlink_to("..version-2")
    os.replace(tmp_path / "..data-new", tmp_path / "..data")
    watched.look()
    assert maximum(watched.look()) == 2


@pytest.mark.parametrize("text", ["", "x = [", POOL.format(-1), None])
def test_a_file_that_cannot_be_used_is_said_once_with_its_line_and_changes_nothing(
    path: Path, watched: WatchedFile, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with caplog.at_level(logging.INFO, "manager"):
        assert [watched.look() for _ in range(5)] == [None] * 5
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"{path}:" if text is not None else f"{path} cannot be")
    assert "the pools are kept as before" in caplog.messages[1]
    assert watched.problems == (caplog.messages[0],)


def test_what_was_in_use_is_no_news_when_it_comes_back_and_the_problem_is_over(
    path: Path, watched: WatchedFile
) -> None:
    path.write_text("x = [")
    watched.look()
    watched.look()
    assert watched.problems
    path.write_text(POOL.format(1))
    assert [watched.look(), watched.look()] == [None, None]
    assert watched.problems == ()


def test_a_file_that_was_refused_is_judged_again_for_who_asks(
    path: Path, watched: WatchedFile
) -> None:
    path.write_text(POOL.format(2))
    assert watched.look(asked=True)
    watched.refuse(["no"])
    assert watched.look() is None
    assert maximum(watched.look(asked=True)) == 2


def test_what_changed_between_reading_and_watching_is_seen(path: Path) -> None:
    file = load(path)
    path.write_text(POOL.format(2))
    assert maximum(WatchedFile(file, {}).look()) == 2
