"""The command line of cl-worker-manager, put in the order that click reads. No option is read.

There the common options stood before the backend's name and its own after it, and `--search`
took every word up to the next option; here options may stand on either side.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

SEARCH = "--search"


def in_order(
    argv: Sequence[str], commands: Collection[str], with_value: Collection[str]
) -> list[str]:
    """The command first, then its options as they stood; each search word with its own `--search`.

    ``with_value``: the options before the command whose next word is their value. Without a
    command the words stay where they are.
    """
    words = _one_search_each(argv, commands)
    position = 0
    while position < len(words):
        word = words[position]
        if word in commands:
            return [word, *words[:position], *words[position + 1 :]]
        position += 2 if word in with_value else 1
    return words


def _one_search_each(argv: Sequence[str], commands: Collection[str]) -> list[str]:
    words: list[str] = []
    searching = False
    commanded = False
    for word in argv:
        if word == SEARCH:
            searching = True
            continue
        is_command = not commanded and word in commands
        commanded = commanded or is_command
        if word.startswith("-") or is_command:
            searching = False
        words += [SEARCH, word] if searching else [word]
    return words
