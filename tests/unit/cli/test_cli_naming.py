from __future__ import annotations

import pytest
from cli_desk import Desk, uuid_of

from bundles.cli.names import find_bundle, find_target, find_uuid, find_uuids, split_target
from bundles.cli.options import default_name, parse_name
from bundles.errors import NotFound, UsageError


def test_a_whole_uuid_is_taken_without_asking_the_server(desk: Desk) -> None:
    with desk.client() as client:
        assert find_uuid(client, uuid_of("abc").upper().replace("X", "x")) == uuid_of("abc")
    assert desk.requests == []


@pytest.mark.parametrize("text", ["0xab", "ab", "0xAB", "0xabc", "abc"])
def test_a_unique_beginning_of_a_uuid_means_that_bundle(desk: Desk, text: str) -> None:
    desk.add(uuid_of("abc1"))
    desk.add(uuid_of("def2"))
    with desk.client() as client:
        assert find_uuid(client, text) == uuid_of("abc1")


def test_a_beginning_of_several_uuids_names_the_candidates(desk: Desk) -> None:
    desk.add(uuid_of("abc1"), "first")
    desk.add(uuid_of("abc2"), "second")
    with desk.client() as client, pytest.raises(UsageError) as caught:
        find_uuid(client, "abc")
    for candidate in (uuid_of("abc1"), "first", uuid_of("abc2"), "second"):
        assert candidate in str(caught.value)


def test_a_name_that_one_bundle_has_means_that_bundle(desk: Desk) -> None:
    desk.add(uuid_of("1"), "corpus")
    desk.add(uuid_of("2"), "corpus-2")
    with desk.client() as client:
        assert find_uuid(client, "corpus") == uuid_of("1")


def test_a_name_that_several_bundles_have_is_refused(desk: Desk) -> None:
    desk.add(uuid_of("1"), "corpus")
    desk.add(uuid_of("2"), "corpus")
    with desk.client() as client, pytest.raises(UsageError, match="several bundles have the name"):
        find_uuid(client, "corpus")


def test_a_name_comes_before_the_beginning_of_a_uuid_unless_0x_is_written(desk: Desk) -> None:
    desk.add(uuid_of("1"), "fee")
    desk.add(uuid_of("fee"), "other")
    with desk.client() as client:
        assert find_uuid(client, "fee") == uuid_of("1")
        assert find_uuid(client, "0xfee") == uuid_of("fee")


def test_what_a_server_makes_of_a_comma_is_not_taken_for_a_name(desk: Desk) -> None:
    desk.add(uuid_of("1"), "a")
    with desk.client() as client, pytest.raises(NotFound):
        find_bundle(client, "z,a")


@pytest.mark.parametrize("text", ["nosuch", "0x12", "12", "0xzz"])
def test_what_nothing_is_called_is_not_found(desk: Desk, text: str) -> None:
    desk.add(uuid_of("abc"), "corpus")
    with desk.client() as client, pytest.raises(NotFound, match=text):
        find_uuid(client, text)


def test_an_empty_name_is_refused_without_asking(desk: Desk) -> None:
    with desk.client() as client, pytest.raises(UsageError):
        find_uuid(client, "")
    assert desk.requests == []


def test_a_bundle_named_twice_is_there_once(desk: Desk) -> None:
    desk.add(uuid_of("abc"), "corpus")
    with desk.client() as client:
        assert find_uuids(client, ["corpus", "0xabc", uuid_of("abc")]) == [uuid_of("abc")]


def test_a_target_has_a_path_after_the_first_slash(desk: Desk) -> None:
    desk.add(uuid_of("abc"), "corpus")
    with desk.client() as client:
        assert find_target(client, "corpus/a/b.txt") == (uuid_of("abc"), "a/b.txt")
    assert split_target("corpus/") == ("corpus", "")


@pytest.mark.parametrize("target", ["x/../y", "x//etc/passwd", "x/.."])
def test_a_path_that_leaves_the_bundle_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="leaves the bundle"):
        split_target(target)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a,b", "50%", "a\nb", "x" * 65])
def test_a_name_that_could_not_be_typed_again_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        parse_name(name)


def test_names_are_made_of_what_there_is() -> None:
    assert default_name("run-sort data/a.txt > out") == "run-sort-data-a.txt-out"
    assert default_name("größe !") == "gr-e"
    assert default_name("///") == "bundle"
    assert parse_name(default_name("x" * 200))
