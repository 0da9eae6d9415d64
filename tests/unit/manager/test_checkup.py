"""Every check that can fail, both ways."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer

from backends.base import Finding, Invalid, Job, JobState, LaunchKey, Preview, Unreachable
from bundles.client import Client
from bundles.home import Credentials
from manager import checkup
from manager.checkup import CHECKS, examine
from manager.command import WorkerOptions
from manager.examination import Examination, Status, Verdict, warn
from manager.ledger import Ledger, Outcome, Pool
from manager.lock import PoolLock
from manager.options import pool_options

KEY = LaunchKey("p", 1, "0123abcd")


class Backend(FakeBackend):
    """One that also shows what it would launch, unless it would be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.findings: list[Finding] = []

    def launch(self, requests: Any, *, dry_run: bool = False) -> Any:
        assert dry_run, "a check launches nothing"
        return [self.refusal or Preview("a job")]

    def check(self) -> list[Finding]:
        return self.findings


class Patient:
    """A pool in which all is well, until a test spoils it."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        self.server = FakeServer(root=True, features="tokens, changes")
        self.backend = Backend()
        self.options: list[click.Option] = []
        self.broken: Exception | None = None
        self.answer: Callable[[httpx.Request], httpx.Response] = self.server
        self.date: float | None = time.time()
        self.environ = {"WORKER_MANAGER_TOKEN": "t", "PATH": os.environ["PATH"]}
        self.missing: tuple[str, ...] = ()
        self.backend_name = "local-process"
        command = click.Command("x", params=[*pool_options()], callback=lambda **given: given)
        self.settings: dict[str, Any] = command.main([], standalone_mode=False)
        self.settings |= {"cpus": 2, "gpus": 0, "memory_mb": 4096, "search": ()}
        self.settings |= {"pool": "p", "server": "http://127.0.0.1:9", "home": str(self.home)}

    def examination(self) -> Examination:
        module = type("Module", (), {})()
        module.options = lambda: self.options
        module.create = lambda context, settings: self.backend

        def load(name: str) -> Any:
            if self.broken:
                raise self.broken
            return module

        def reply(request: httpx.Request) -> httpx.Response:
            response = self.answer(request)
            if self.date is not None:
                response.headers["Date"] = formatdate(self.date, usegmt=True)
            return response

        def connect(server: str, credentials: Credentials) -> Client:
            return Client(server, credentials, transport=httpx.MockTransport(reply))

        worker = WorkerOptions(executable=self.settings["worker_executable"])
        return Examination(
            self.backend_name,
            *(self.settings, worker, self.environ, self.missing, connect, load),
        )

    def verdict(self, name: str) -> Verdict:
        given = self.examination()
        try:
            return CHECKS[name](given)
        finally:
            given.close()

    def ledger(self, **pool: Any) -> Ledger:
        ledger = Ledger(self.home / "ledger.db")
        described = {"name": "p", "backend": "local-process", "server": "http://127.0.0.1:9"}
        ledger.describe(Pool(**{**described, "settings": {}, **pool}))
        return ledger

    def shares_files(self) -> None:
        capabilities = dataclasses.replace(self.backend.capabilities, shares_files=True)
        self.backend.capabilities = capabilities


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def test_a_pool_in_which_all_is_well_passes_every_check(patient: Patient) -> None:
    given = patient.examination()
    found = dict(examine(given))
    given.close()
    assert len(found) == len(CHECKS) >= 25
    assert {n: v for n, v in found.items() if v.status is not Status.OK} == {}
    assert sorted(path.name for path in patient.home.iterdir()) == []


Spoil = Callable[[Patient, pytest.MonkeyPatch], None]


def setting(**values: Any) -> Spoil:
    return lambda patient, _: patient.settings.update(values)


def environ(**values: str) -> Spoil:
    return lambda patient, _: patient.environ.update(values)


def answer(status: int) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        patient.server.status = status

    return spoil


def unanswered(patient: Patient, _: pytest.MonkeyPatch) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    patient.answer = refuse


def skewed(seconds: float | None) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        patient.date = None if seconds is None else time.time() + seconds

    return spoil


def elsewhere(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.settings["server"] = "https://example.org"


def free(number: int) -> Spoil:
    usage = shutil.disk_usage("/")._replace(free=number)
    return lambda _, patch: patch.setattr(shutil, "disk_usage", lambda path: usage)


def unwritable(_: Patient, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "access", lambda path, mode: False)


def file(name: str, text: str) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        (patient.home / name).parent.mkdir(exist_ok=True)
        (patient.home / name).write_text(text)

    return spoil


def forbidden(name: str) -> Spoil:
    def spoil(patient: Patient, patch: pytest.MonkeyPatch) -> None:
        read = Path.read_text

        def refuse(path: Path, *arguments: Any, **options: Any) -> str:
            if path == patient.home / name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return read(path, *arguments, **options)

        patch.setattr(Path, "read_text", refuse)

    return spoil


def open_to_others(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.home.chmod(0o755)


def pool_of(**pool: str) -> Spoil:
    return lambda patient, _: patient.ledger(**pool).close()


def unsettled(patient: Patient, _: pytest.MonkeyPatch) -> None:
    with patient.ledger() as ledger:
        ledger.intend("p", 1)


def refused(patient: Patient, _: pytest.MonkeyPatch) -> None:
    with patient.ledger() as ledger:
        (key,) = ledger.intend("p", 1)
        ledger.settle(key, Outcome.REFUSED, error="no such queue")


def locked(patient: Patient, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkup, "holder", lambda path: 4711)


def jobs(number: int) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        key = KEY
        patient.backend.jobs = [Job("j", key, str(key), JobState.ACTIVE, NOW, NOW)] * number

    return spoil


def backend(**values: Any) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            setattr(patient.backend, name, value)

    return spoil


def broken(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.broken = Invalid("boto3 is not installed")


def missing(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.missing = ("--queue",)


def no_features(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.server.features = ""


def not_root(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.server.root = False


def large_bundle(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.server.stage(request_cpus=64)


def sharing(*others: Spoil) -> Spoil:
    def spoil(patient: Patient, patch: pytest.MonkeyPatch) -> None:
        patient.shares_files()
        for other in others:
            other(patient, patch)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(patient: Patient, patch: pytest.MonkeyPatch) -> None:
        for one in spoils:
            one(patient, patch)

    return spoil


def of_slurm(patient: Patient, _: pytest.MonkeyPatch) -> None:
    patient.backend_name = "slurm"


def image(value: str | None) -> Spoil:
    def spoil(patient: Patient, _: pytest.MonkeyPatch) -> None:
        patient.options = [click.Option(["--image"])]
        patient.settings["image"] = value

    return spoil


def no_token(patient: Patient, _: pytest.MonkeyPatch) -> None:
    del patient.environ["WORKER_MANAGER_TOKEN"]


def few_files(_: Patient, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkup.resource, "getrlimit", lambda what: (64, 64))


def old_python(_: Patient, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkup, "OLDEST_PYTHON", (99, 0, 0))


def unstartable(_: Patient, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "executable", "/bin/false")


SPOILED: list[tuple[str, Status, Spoil, str]] = [
    ("python-version", Status.FAIL, old_python, "Python 3"),
    ("open-files", Status.WARN, few_files, "64 files"),
    ("home-writable", Status.FAIL, unwritable, "cannot be written"),
    ("home-private", Status.WARN, open_to_others, "0755"),
    ("home-disk", Status.WARN, free(GIB // 2), "free for the home"),
    ("home-disk", Status.FAIL, free(1000), "free for the home"),
    ("owner-mark", Status.FAIL, file("owner", "?"), "is damaged"),
    ("owner-mark", Status.FAIL, forbidden("owner"), "another user's; be that one, or give a home"),
    ("ledger-usable", Status.FAIL, file("ledger.db", "no database " * 99), "not a database"),
    ("ledger-usable", Status.FAIL, both(pool_of(), unwritable), "cannot be written"),
    ("ledger-unsettled", Status.WARN, unsettled, "what became of 1"),
    ("journal-writable", Status.FAIL, unwritable, "cannot be written"),
    ("journal-readable", Status.WARN, file("journal/p.jsonl", '{"format": 99}\n'), "format 99"),
    ("server-address", Status.FAIL, setting(server="localhost"), "is not an address"),
    ("server-encrypted", Status.WARN, setting(server="http://example.org"), "example.org"),
    ("server-for-workers", Status.WARN, of_slurm, "workers on others do not reach it"),
    ("password-file", Status.FAIL, setting(password_file="/no/such/file"), "cannot be read"),
    ("credentials-found", Status.FAIL, no_token, "no credentials"),
    (
        "credentials-single",
        Status.WARN,
        environ(CODALAB_USERNAME="u", CODALAB_PASSWORD="x"),
        "is taken, not",
    ),
    ("credentials-single", Status.WARN, setting(password_file="f"), "--password-file is taken"),
    ("server-reachable", Status.FAIL, unanswered, "no answer"),
    ("server-reachable", Status.FAIL, answer(503), "status 503"),
    ("credentials-accepted", Status.FAIL, answer(401), "status 401"),
    ("clock", Status.WARN, both(elsewhere, skewed(None)), "does not tell its time"),
    ("clock", Status.WARN, skewed(90), " s ahead"),
    ("clock", Status.FAIL, skewed(-7200), "behind"),
    ("worker-token", Status.FAIL, no_features, "need a user and a password"),
    ("whose-bundles", Status.WARN, both(not_root, setting(worker_group="g")), "group g"),
    ("pool-name", Status.FAIL, setting(pool="../x"), "is not a name"),
    ("pool-identity", Status.WARN, pool_of(backend="slurm"), "was a pool of slurm"),
    ("pool-identity", Status.WARN, pool_of(server="http://other"), "was for http://other"),
    ("pool-lock", Status.WARN, locked, "process 4711 keeps"),
    ("limits", Status.FAIL, setting(min_workers=9, max_workers=3), "is more than"),
    ("limits", Status.WARN, setting(min_workers=0, max_workers=0), "nothing is ever launched"),
    ("idle-seconds", Status.WARN, setting(worker_idle_seconds=0), "launched again each time"),
    ("launch-interval", Status.WARN, setting(min_seconds_between_workers=900), "take 2.5 h"),
    ("look-interval", Status.WARN, both(no_features, setting(sleep_time=300)), "300 s late"),
    ("backend-loaded", Status.FAIL, broken, "boto3 is not installed"),
    ("backend-options", Status.FAIL, missing, "not given: --queue"),
    (
        "worker-command",
        Status.FAIL,
        sharing(setting(worker_executable="no-such-program")),
        "no-such-program",
    ),
    ("worker-starts", Status.FAIL, sharing(unstartable), "it said nothing"),
    ("worker-image", Status.FAIL, image(None), "no image"),
    ("worker-image", Status.WARN, image("here:5000/name"), "another image tomorrow"),
    ("work-directory", Status.WARN, setting(worker_work_dir_prefix="work"), "depends on"),
    (
        "work-directory",
        Status.FAIL,
        sharing(setting(worker_work_dir_prefix="/w"), unwritable),
        "cannot be written",
    ),
    ("launch-preview", Status.FAIL, backend(refusal=Invalid("no such queue")), "no such queue"),
    ("jobs-listed", Status.FAIL, backend(error=Unreachable("no answer")), "no answer"),
    ("jobs-known", Status.WARN, jobs(1), "1 job of ours that"),
    ("room-for-more", Status.WARN, both(jobs(1), setting(max_workers=1)), "1 jobs of at most 1"),
    ("launches-held", Status.WARN, refused, "no such queue"),
    ("search-words", Status.FAIL, None, "refuses the search"),  # type: ignore[list-item]
    ("bundles-fit", Status.WARN, large_bundle, "1 staged bundle would fit no worker"),
]


@pytest.mark.parametrize(("name", "status", "spoil", "sentence"), SPOILED)
def test_what_is_wrong_is_told_with_what_to_do(
    name: str,
    status: Status,
    spoil: Spoil | None,
    sentence: str,
    patient: Patient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if spoil is None:
        patient.answer = lambda request: (
            patient.server(request) if request.url.path.endswith("/user") else httpx.Response(400)
        )
    else:
        spoil(patient, monkeypatch)
    found = patient.verdict(name)
    assert (found.status, sentence in found.sentence) == (status, True), found
    assert found.remedy


def test_every_check_is_tested_both_ways() -> None:
    assert {name for name, *_ in SPOILED} == set(CHECKS)


def test_one_cause_is_one_failure(patient: Patient) -> None:
    patient.settings["password_file"] = "/no/such/file"
    given = patient.examination()
    failed = {name for name, verdict in examine(given) if verdict.status is Status.FAIL}
    given.close()
    assert failed == {"password-file", "credentials-found"}


def test_images_of_one_version_are_well(patient: Patient) -> None:
    for name in ("here:5000/name:1.2", "name@sha256:0123"):
        patient.options = [click.Option(["--image"])]
        patient.settings["image"] = name
        assert patient.verdict("worker-image").status is Status.OK


def test_a_lock_that_is_held_is_seen(patient: Patient) -> None:
    lock = PoolLock(patient.home / "locks" / "p.lock")
    assert lock.try_take()
    try:
        assert f"process {os.getpid()}" in patient.verdict("pool-lock").sentence
    finally:
        lock.release()
    assert patient.verdict("pool-lock").status is Status.OK


def test_what_cannot_be_looked_at_names_the_check_that_failed(patient: Patient) -> None:
    patient.environ = {}
    given = patient.examination()
    found = dict(examine(given))
    given.close()
    assert found["credentials-found"].status is Status.FAIL
    assert found["clock"] == warn(
        "not looked at: credentials-found", "mend that first, and ask again"
    )
    assert [name for name, v in found.items() if v.status is Status.FAIL] == ["credentials-found"]


def test_the_findings_of_the_backend_come_last_by_their_own_names(patient: Patient) -> None:
    patient.backend.findings = [
        Finding("--queue", "it is there"),
        Finding("--role", "there is none", Invalid("x"), "make one"),
        Finding("--zone", "no answer", Unreachable("x"), "try again"),
    ]
    given = patient.examination()
    found = list(examine(given))[-3:]
    given.close()
    assert [(name, str(v.status)) for name, v in found] == [
        ("backend: --queue", "ok"),
        ("backend: --role", "fail"),
        ("backend: --zone", "warn"),
    ]
