from __future__ import annotations

from pathlib import Path

import pytest

from bundles.server.cache import Cache

KIB = 1024
FILE_BYTES = 64 * KIB


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "cache", most_bytes=2 * FILE_BYTES)
    made.prepare()
    return made


def add(cache: Cache, *names: str, size_bytes: int = FILE_BYTES) -> None:
    for name in names:
        place = cache.new_place()
        place.write_bytes(b"x" * size_bytes)
        cache.add(name, place)


def present(cache: Cache, *names: str) -> list[str]:
    """Without using them."""
    return [name for name in names if name in cache._copies]


def kept(tmp_path: Path) -> int:
    return sum(1 for _ in (tmp_path / "cache" / "kept").iterdir())


def test_what_was_used_longest_ago_goes_first(cache: Cache, tmp_path: Path) -> None:
    add(cache, "a", "b")
    assert cache.hold("a") is not None
    cache.release("a")
    add(cache, "c")
    assert present(cache, "a", "b", "c") == ["a", "c"]
    assert kept(tmp_path) == 2


def test_what_is_held_stays_where_it_is_until_it_is_let_go(cache: Cache, tmp_path: Path) -> None:
    add(cache, "a")
    path = cache.hold("a")
    assert path is not None
    assert cache.hold("a") == path
    add(cache, "b", "c", "d")
    assert cache.make_room()
    assert kept(tmp_path) == 1
    assert not cache.make_room()
    cache.release("a")
    assert path.read_bytes() == b"x" * FILE_BYTES
    add(cache, "e", "f", "g")
    assert path.exists()
    cache.release("a")
    add(cache, "h")
    assert not path.exists()
    assert kept(tmp_path) == 2


def test_what_is_dropped_is_nobodys_to_find_but_its_holders(cache: Cache, tmp_path: Path) -> None:
    add(cache, "a", "b")
    path = cache.hold("a")
    assert path is not None
    cache.drop("a")
    cache.drop("b")
    cache.drop("never there")
    assert cache.hold("a") is cache.hold("b") is None
    assert path.exists()
    cache.release("a")
    assert kept(tmp_path) == 0


def test_what_came_last_stays_however_large(cache: Cache) -> None:
    add(cache, "a", "b")
    add(cache, "large", size_bytes=5 * FILE_BYTES)
    assert present(cache, "a", "b", "large") == ["large"]
    add(cache, "c")
    assert present(cache, "large", "c") == ["c"]


def test_what_comes_twice_is_kept_once(cache: Cache, tmp_path: Path) -> None:
    add(cache, "a")
    path = cache.hold("a")
    add(cache, "a")
    assert cache.hold("a") == path
    assert kept(tmp_path) == 1
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []


def test_many_small_files_count_as_what_they_take(cache: Cache) -> None:
    place = cache.new_place()
    place.mkdir()
    for number in range(64):
        (place / str(number)).write_bytes(b"x")
    cache.add("many", place)
    add(cache, "a")
    assert present(cache, "many", "a") == ["a"]


def test_a_start_begins_with_nothing(cache: Cache, tmp_path: Path) -> None:
    add(cache, "a")
    cache.new_place().write_text("half")
    again = Cache(tmp_path / "cache", most_bytes=FILE_BYTES)
    again.prepare()
    assert again.hold("a") is None
    assert kept(tmp_path) == 0
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []
