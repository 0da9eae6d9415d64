"""A shell script that stands in for a worker: it does as it is told, and says what it was given."""

from __future__ import annotations

from pathlib import Path

from backends.base import KEY, LaunchKey

SECRET_VARIABLE = "CONFORMANCE_SECRET"

_SCRIPT = f"""
directory=$1 key=$2
shift 2
trap 'exit 7' TERM
echo "worker $key"
for word; do printf 'word %s\\n' "$word"; done
echo "secret ${{#{SECRET_VARIABLE}}}"
while [ ! -s "$directory/$key.exit" ]; do sleep 0.1; done
exit "$(cat "$directory/$key.exit")"
"""


def stand_in(directory: Path | str) -> tuple[str, ...]:
    """The command line of one that runs until it is asked to end (exit code 7), or until
    ``directory``, as its machine names it, has word for it. It prints

        worker KEY
        word WORD        for each further word of its command line
        secret LENGTH    of the value of SECRET_VARIABLE in its environment

    and needs `sh`, `sleep` and `cat`.
    """
    return ("/bin/sh", "-c", _SCRIPT, "stand-in", str(directory), KEY)


def leave_word(directory: Path, key: LaunchKey | None, exit_code: int) -> None:
    """Have the stand-in of a key leave with an exit code."""
    word = directory / f"{key}.exit"
    temporary = word.with_suffix(".new")
    temporary.write_text(f"{exit_code}\n")
    temporary.replace(word)
