"""How fast `worker-manager --help` can be: what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("httpx", "rich", "sqlalchemy", "starlette", "pydantic", "orjson", "psutil", "sqlite3")
HEAVY += ("prometheus_client", "wsgiref")


@pytest.mark.parametrize(
    "words", [[], ["local-process"], ["status"], ["demo"], ["explain"], ["doctor"], ["replay"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from manager.cli import main; code = main(sys.argv[1:]);"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines()[0].startswith("Usage: worker-manager")
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0"
