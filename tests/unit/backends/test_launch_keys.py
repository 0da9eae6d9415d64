from __future__ import annotations

import pytest

from backends.base import KEY, JobResources, LaunchKey, LaunchRequest, rows


@pytest.mark.parametrize("pool", ["p", "local-process", "a-1", "A_b-2-c"])
def test_a_key_is_read_back_from_its_text(pool: str) -> None:
    key = LaunchKey.make(pool, 17)
    assert LaunchKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "p", "p-1", "p-1-xyz", "../p-1-00000000", "-1-00000000"])
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert LaunchKey.parse(text) is None


def test_two_keys_of_one_pool_and_number_differ() -> None:
    assert LaunchKey.make("p", 1) != LaunchKey.make("p", 1)


def asked(keys: list[LaunchKey], *argv: str) -> list[LaunchRequest]:
    return [LaunchRequest(key, argv, JobResources(1, 0, 1)) for key in keys]


def test_the_key_stands_in_the_command_wherever_its_sign_is_in_the_argv() -> None:
    (key,) = LaunchKey.make_row("p", 3, 1)
    (request,) = asked([key], "w", "--id", KEY, f"/d/{KEY}/x")
    assert request.command == ("w", "--id", str(key), f"/d/{key}/x")


def test_one_row_counts_off_its_keys_and_an_array_launches_it_whole() -> None:
    keys = LaunchKey.make_row("p", 5, 4)
    assert [key.sequence for key in keys] == [5, 6, 7, 8]
    assert len({key.random for key in keys}) == 1
    assert rows(asked(keys, "w"), 10) == [asked(keys, "w")]


def test_a_row_is_cut_at_its_longest_at_another_command_and_at_another_random() -> None:
    row, other = LaunchKey.make_row("p", 1, 3), LaunchKey.make_row("p", 4, 1)
    assert [len(cut) for cut in rows(asked(row, "w"), 2)] == [2, 1]
    assert [len(cut) for cut in rows(asked(row, "w") + asked(other, "w"), 9)] == [3, 1]
    assert [len(cut) for cut in rows(asked(row[:2], "w") + asked(row[2:], "v"), 9)] == [2, 1]
    assert rows([], 9) == []
