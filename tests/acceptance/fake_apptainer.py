"""Stands for apptainer: writes down how it is called, and does what that comes to without a
container. ``log`` beside it holds the command lines; files beside it break it on purpose:

    refuse   what `pull` says, and fails
    hold     `pull` waits until it is gone
    fatal    what `exec` says, and exits with 255
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

PLACE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """As apptainer does; returns its exit code."""
    with (PLACE / "log").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments[0] == "pull":
        return pull(Path(arguments[-2]), arguments[-1])
    return run(arguments[arguments.index("exec") + 1 :])


def pull(file: Path, name: str) -> int:
    print("INFO:    Converting OCI blobs to SIF format", file=sys.stderr, flush=True)
    while (PLACE / "hold").exists():
        time.sleep(0.02)
    if (PLACE / "refuse").exists():
        print(f"FATAL:   {(PLACE / 'refuse').read_text()}", file=sys.stderr)
        return 255
    (PLACE / "environment").write_text(json.dumps(dict(os.environ)))
    file.write_text(f"{name}\n".ljust(1000))
    return 0


def run(options: list[str]) -> int:
    if (PLACE / "fatal").exists():
        print(f"FATAL:   {(PLACE / 'fatal').read_text()}", file=sys.stderr)
        return 255
    binds = dict(
        tuple(reversed(value.removesuffix(":ro").split(":")))
        for option, value in itertools.pairwise(options)
        if option == "--bind"
    )
    image = next(number for number, option in enumerate(options) if option.endswith(".sif"))
    assert Path(options[image]).exists()
    inside = {
        name.removeprefix("APPTAINERENV_"): value
        for name, value in os.environ.items()
        if name.startswith("APPTAINERENV_")
    }
    os.chdir(binds[options[options.index("--pwd") + 1]])
    command = options[image + 1 :]
    # The real one stays, and waits for its container.
    code = os.spawnvpe(os.P_WAIT, command[0], command, inside | {"PATH": os.environ["PATH"]})
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
