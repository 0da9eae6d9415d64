from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundles.errors import UsageError
from worker.links import place_links, remove_links
from worker.trees import make_read_only, make_readable, measure_tree, remove_tree
from worker.visits import write_file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two contents: the directory `tree` and the file `file`."""
    cache = tmp_path / "cache"
    (cache / "tree" / "sub").mkdir(parents=True)
    (cache / "tree" / "a").write_text("a")
    (cache / "tree" / "sub" / "b").write_text("b")
    (cache / "file").write_text("f")
    return cache


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def test_a_tree_is_removed_whatever_its_modes_are(tmp_path: Path) -> None:
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "f").write_text("x")
    (tmp_path / "t" / "link").symlink_to(tmp_path)
    (tmp_path / "t" / "d").chmod(0o000)
    remove_tree(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    remove_tree(tmp_path / "t")


def test_a_tree_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        inside = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(os.open("f", os.O_CREAT, 0o000, dir_fd=inside))
        if depth % 99 == 0:
            os.fchmod(inside, 0o700 if os.geteuid() else 0)
        os.close(descriptor)
        descriptor = inside
    os.close(descriptor)
    (tmp_path / "stays").write_text("x")
    (tmp_path / "d" / "link").symlink_to(tmp_path)
    remove_tree(tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["stays"]


def test_links_are_taken_out_of_the_directory_only(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "outside" / "b").mkdir(parents=True)
    (directory / "a").symlink_to(tmp_path / "outside")
    remove_links(directory, ["a/b/c"], tmp_path / "cache")
    assert (tmp_path / "outside" / "b").is_dir()


def test_what_its_owner_may_not_read_can_be_made_readable(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("x")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_text("x")
    for path in ("d/e/f", "d/e", "d", "outside"):
        (tmp_path / path).chmod(0)
    make_readable(tmp_path / "d")
    for path in ("d/e/f", "d/e", "d"):
        assert (tmp_path / path).stat().st_mode & 0o400
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0


def test_a_tree_is_measured_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "f").write_bytes(bytes(1000))
    (tmp_path / "t" / "link").symlink_to("x" * 10)
    assert measure_tree(tmp_path / "t") == (1010, 2)
    assert measure_tree(tmp_path / "t" / "d" / "f") == (1000, 1)
    assert measure_tree(tmp_path / "none") == (0, 0)


def test_what_is_read_only_has_no_right_to_write_and_outside_is_left_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "f").write_text("x")
    (tmp_path / "outside").write_text("x")
    (tmp_path / "t" / "link").symlink_to(tmp_path / "outside")
    assert make_read_only(tmp_path / "t") == measure_tree(tmp_path / "t")
    for path in (tmp_path / "t", tmp_path / "t" / "d", tmp_path / "t" / "d" / "f"):
        assert path.stat().st_mode & 0o222 == 0
    assert (tmp_path / "outside").stat().st_mode & 0o200


def test_links_are_made_where_wanted_and_taken_out_with_the_directories_made_for_them(
    cache: Path, directory: Path
) -> None:
    wanted = {"d": cache / "tree", "x/y/f": cache / "file", "own/f": cache / "file"}
    place_links(directory, wanted)
    assert (directory / "d" / "sub" / "b").read_text() == "b"
    assert (directory / "x" / "y" / "f").read_text() == "f"
    (directory / "own" / "result").write_text("r")
    remove_links(directory, wanted, cache)
    assert sorted(str(p.relative_to(directory)) for p in directory.rglob("*")) == [
        "own",
        "own/result",
    ]
    assert (cache / "tree" / "sub" / "b").read_text() == "b"


def test_a_key_may_lie_within_anothers(cache: Path, directory: Path) -> None:
    wanted = {
        ".": cache / "tree",
        "sub/f": cache / "file",
        "d": cache / "tree",
        "d/f": cache / "file",
    }
    place_links(directory, wanted)
    assert (directory / "a").read_text() == "a"
    assert (directory / "sub" / "b").read_text() == "b"
    assert (directory / "sub" / "f").read_text() == "f"
    assert (directory / "d" / "sub" / "b").read_text() == "b"
    assert (directory / "d" / "f").read_text() == "f"
    assert not (cache / "tree" / "f").exists()
    remove_links(directory, wanted, cache)
    assert list(directory.iterdir()) == []


def test_links_that_are_the_runs_own_stay(cache: Path, directory: Path) -> None:
    place_links(directory, {"d": cache / "tree"})
    (directory / "mine").symlink_to("d")
    (directory / "etc").symlink_to("/etc")
    remove_links(directory, ["d"], cache)
    assert sorted(os.listdir(directory)) == ["etc", "mine"]


def test_a_key_that_leaves_the_directory_is_refused(cache: Path, directory: Path) -> None:
    for key in ("../x", "/x", "a/../../x"):
        with pytest.raises(UsageError):
            place_links(directory, {key: cache / "file"})


def test_files_are_written_into_a_run_only(directory: Path, tmp_path: Path) -> None:
    bundle = {"dependencies": [{"child_path": "d", "parent_uuid": "0x"}]}
    write_file(directory, bundle, "a/b", "text")
    assert (directory / "a" / "b").read_text() == "text"
    (directory / "out").symlink_to(tmp_path)
    (directory / "link").symlink_to(tmp_path / "x")
    # What leads nowhere out now may do so a moment later.
    (directory / "inside").symlink_to(directory / "a")
    for path in ("inside/b", "a/b/c"):
        with pytest.raises(UsageError):
            write_file(directory, bundle, path, "other")
    assert (directory / "a" / "b").read_text() == "text"
    for path in ("../x", "/x", "d", "d/x", "out/x", ".", "link"):
        with pytest.raises((UsageError, OSError)):
            write_file(directory, bundle, path, "text")
    assert not (tmp_path / "x").exists()


def test_the_output_of_a_parent_is_not_linked_where_the_run_writes_its_own(tmp_path: Path) -> None:
    parent, run = tmp_path / "parent", tmp_path / "run"
    parent.mkdir()
    run.mkdir()
    for name in ("stdout", "stderr", "kept"):
        (parent / name).write_text("of the parent")
    place_links(run, {".": parent})
    assert [path.name for path in run.iterdir()] == ["kept"]


def test_links_lead_to_where_a_container_shows_the_contents(tmp_path: Path) -> None:
    parent, run = tmp_path / "parent", tmp_path / "run"
    (parent / "d").mkdir(parents=True)
    (run / "d").mkdir(parents=True)
    (parent / "d" / "f").write_text("x")
    shown = Path("/elsewhere/parent")
    place_links(run, {".": parent, "whole": parent}, {".": shown, "whole": shown})
    assert os.readlink(run / "whole") == "/elsewhere/parent"
    assert os.readlink(run / "d" / "f") == "/elsewhere/parent/d/f"
    remove_links(run, [".", "whole"], Path("/elsewhere"))
    assert [path.name for path in run.iterdir()] == ["d"]
