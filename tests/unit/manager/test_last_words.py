from __future__ import annotations

import pytest

from manager.last_words import LONGEST_BYTES, last_words


def test_the_end_is_kept_in_whole_lines() -> None:
    output = "".join(f"line {number}\n" for number in range(10_000))
    words = last_words(output)
    assert words.endswith("line 9999")
    assert words.startswith("line ")
    assert LONGEST_BYTES - 20 < len(words.encode()) <= LONGEST_BYTES
    assert len(last_words("é" * 9999).encode()) <= LONGEST_BYTES


@pytest.mark.parametrize(
    "line",
    [
        "WORKER_MANAGER_TOKEN=hush.hush-123",
        'export CODALAB_PASSWORD="hush.hush-123"',
        "Authorization: Bearer hush.hush-123",
        "{'access_token': 'hush.hush-123'}",
        "GET http://user:hush.hush-123@host/rest",
        "curl -H 'bearer hush.hush-123'",
        "the one that we handed out: hush.hush-123",
    ],
)
def test_what_is_secret_is_not_kept(line: str) -> None:
    words = last_words(f"before\n{line}\nafter", ["hush.hush-123"] if "handed" in line else [])
    assert "hush" not in words
    assert words.startswith("before\n")
    assert words.endswith("\nafter")


def test_what_moves_a_terminal_s_cursor_is_not_kept() -> None:
    assert last_words("\x1b[31mred\x1b[0m\a\x00 text\ttab\nnext\r") == "red text\ttab\nnext"


def test_a_worker_that_said_nothing_has_no_last_words() -> None:
    assert last_words("") == ""
