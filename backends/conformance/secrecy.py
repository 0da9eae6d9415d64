"""Secrecy: the worker knows its secrets, and nobody can read them on the way."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand, jobs_of, needs
from backends.conformance.stand_in import SECRET_VARIABLE


class Secrecy(Case):
    """Every test launches workers with a secret, and then looks for it everywhere."""

    def test_a_worker_has_its_secrets_in_its_environment(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.RUNS)
        secret = "it's $1; " + secrets.token_hex(16)
        requests = stand.requests(2, secrets={SECRET_VARIABLE: secret})
        jobs = jobs_of(stand.backend.launch(requests))
        stand.start(jobs)
        for job in jobs:
            assert f"secret {len(secret)}\n" in stand.logs(job)

    def test_a_secret_is_in_no_request_no_command_line_no_file_and_no_log(
        self, stand: Stand, tmp_path: Path
    ) -> None:
        secret = secrets.token_hex(16)
        requests = stand.requests(2, secrets={SECRET_VARIABLE: secret})
        assert secret not in repr(requests)
        jobs = jobs_of(stand.backend.launch(requests))
        stand.start(jobs)
        assert [line for line in _command_lines() if secret in line] == []
        assert [path for path in _readable_by_others(tmp_path) if secret in _text(path)] == []
        for job in stand.listed(job.key for job in jobs).values():
            assert secret not in repr(job)
            if Circumstance.RUNS not in stand.harness.impossible:
                assert secret not in stand.logs(job)
        stand.backend.terminate([job.id for job in jobs])
        for job in jobs:
            stand.until_over(job)
        if Circumstance.COUNTED not in stand.harness.impossible:
            assert secret not in stand.harness.sent()
            assert str(requests[0].key) in stand.harness.sent(), "what was sent is not what is kept"


def _command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # processes end
            yield entry.read_text(errors="replace")


def _readable_by_others(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.is_file() and os.stat(path).st_mode & 0o077:
            yield path


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
