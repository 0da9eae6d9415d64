"""The sh text of one job array's children: each runs the command line with its own launch key.

For services that start all children of an array with the same command and tell each its index in
an environment variable.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from backends.base import KEY


def keyed_command(
    argv: Sequence[str], first: int, random: str, pool: str, index_variable: str
) -> str:
    """Text for `sh -c` that runs ``argv`` with `<pool>-<first + index>-<random>` in KEY's places.

    The child's index, from 0, is in the environment variable ``index_variable``; without it the
    child fails, because it would take another's key. The command takes the shell's place, so that
    signals and exit codes are its own; every word of it is taken as it is.
    """
    words = " ".join(_keyed(word) for word in argv)
    return f'launch_key="{pool}-$(({first} + ${{{index_variable}:?}}))-{random}"; exec {words}'


def _keyed(word: str) -> str:
    """The word in quotes, with the variable wherever the key belongs."""
    if KEY not in word:
        return shlex.quote(word)
    return '"$launch_key"'.join(piece and shlex.quote(piece) for piece in word.split(KEY))
