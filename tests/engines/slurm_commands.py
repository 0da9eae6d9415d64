"""Slurm's commands with something in front of them that counts, keeps what was asked, and fails."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Fault = Literal[
    "lose-reply", "hang-after", "tear", "forget", "hang", "refuse", "unreachable", "throttle",
    "throttle-twice",
]  # fmt: skip
"""lose-reply: sbatch submits and is killed before it says so. hang-after: it submits and hangs.
tear: squeue stops half-way. forget: the controller knows no job any more."""

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sacct")

_SCRIPT = """#!/bin/sh
# {program} of the tests: see slurm_commands.
directory={directory}
{{ printf '%s' {program}; for word; do printf ' %s' "$word"; done; echo; }} >> "$directory/calls"
if [ {program} = sbatch ]; then
    for script; do :; done
    [ ! -f "$script" ] || cat "$script" >> "$directory/scripts"
fi
fault=$(cat "$directory/fault")
case $fault in
    hang) exec sleep 1000 ;;
    unreachable)
        echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
        exit 1 ;;
    refuse) echo "slurm_load_jobs error: Access/permission denied" >&2; exit 1 ;;
    throttle) echo "slurm_load_jobs error: RPC rate limit exceeded" >&2; exit 1 ;;
    throttle-twice)
        echo x >> "$directory/throttled"
        if [ "$(wc -l < "$directory/throttled")" -le 2 ]; then
            echo "slurm_load_jobs error: RPC rate limit exceeded" >&2
            exit 1
        fi ;;
    lose-reply) if [ {program} = sbatch ]; then {real} "$@" > "$directory/reply"; kill -9 $$; fi ;;
    hang-after)
        if [ {program} = sbatch ]; then {real} "$@" > "$directory/reply"; exec sleep 1000; fi ;;
    forget) [ {program} != squeue ] || exit 0 ;;
    tear)
        if [ {program} = squeue ]; then
            {real} "$@" > "$directory/whole"
            head -c "$(($(wc -c < "$directory/whole") * 2 / 3))" "$directory/whole"
            exit 0
        fi ;;
esac
exec {real} "$@"
"""


class SlurmCommands:
    """A directory to put in front of PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for program in PROGRAMS:
            real = shutil.which(program)
            assert real is not None, f"{program} is not installed: make engines"
            path = directory / program
            path.write_text(
                _SCRIPT.format(
                    program=program, directory=shlex.quote(str(directory)), real=shlex.quote(real)
                )
            )
            path.chmod(0o755)
        (directory / "calls").touch()
        (directory / "scripts").touch()
        self._set("")

    def _set(self, fault: str) -> None:
        (self.directory / "throttled").write_text("")
        (self.directory / "fault").write_text(f"{fault}\n")

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        self._set(fault)
        try:
            yield
        finally:
            self._set("")

    @property
    def calls(self) -> list[str]:
        """The command lines, oldest first."""
        return (self.directory / "calls").read_text().splitlines()

    @property
    def scripts(self) -> str:
        """All that was submitted."""
        return (self.directory / "scripts").read_text()
