"""What a child of a job array runs, tried with a real shell: no service, no files."""

from __future__ import annotations

import subprocess

from backends.base import KEY
from backends.shell import keyed_command

WORDS = ("it's", "a b", "$HOME;*", '"', "line\nline", "", "-n", "\\", "`ls`", "ü")


def run(*words: str, index: str | None) -> subprocess.CompletedProcess[str]:
    text = keyed_command(("printf", r"<%s>\n", *words), 40, "0123abcd", "my_pool", "INDEX")
    return subprocess.run(
        ["/bin/sh", "-c", text],
        env={"PATH": "/usr/bin:/bin"} | ({} if index is None else {"INDEX": index}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_every_child_has_a_key_of_its_own_wherever_one_belongs() -> None:
    for index in range(3):
        key = f"my_pool-{40 + index}-0123abcd"
        said = run(KEY, f"/scratch/{KEY}/a b", f"{KEY}{KEY}", index=str(index)).stdout
        assert said == f"<{key}>\n</scratch/{key}/a b>\n<{key}{key}>\n"


def test_every_other_word_is_taken_as_it_is() -> None:
    assert run(*WORDS, index="0").stdout == "".join(f"<{word}>\n" for word in WORDS)


def test_a_child_that_does_not_know_its_index_takes_nobody_elses_key() -> None:
    for index in (None, ""):
        done = run(KEY, index=index)
        assert done.returncode != 0
        assert done.stdout == ""
