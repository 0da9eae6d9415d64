from __future__ import annotations

import pytest

from backends.base import LaunchKey


@pytest.mark.parametrize("pool", ["p", "local-process", "a-1", "A_b-2-c"])
def test_a_key_is_read_back_from_its_text(pool: str) -> None:
    key = LaunchKey.make(pool, 17)
    assert LaunchKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "p", "p-1", "p-1-xyz", "../p-1-00000000", "-1-00000000"])
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert LaunchKey.parse(text) is None


def test_two_keys_of_one_pool_and_number_differ() -> None:
    assert LaunchKey.make("p", 1) != LaunchKey.make("p", 1)
