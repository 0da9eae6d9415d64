from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manager.cli import main

URL = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _nobody_in_particular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SERVER", "TOKEN"):
        monkeypatch.delenv(f"WORKER_MANAGER_{name}", raising=False)
    monkeypatch.delenv("CODALAB_USERNAME", raising=False)
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("local-process --min 5 --max 3", "--min-workers 5 is more than --max-workers 3"),
        ("--min-workers 5 --max-workers 3 local-process", "--min-workers 5 is more than"),
        ("local-process --min -1", "-1 is not in the range"),
        ("local-process --max -1", "-1 is not in the range"),
        ("local-process --sleep-time -1", "-1.0 is not in the range"),
        ("local-process --min-seconds-between-workers -1", "not in the range"),
        ("local-process --worker-idle-seconds -1", "not in the range"),
        ("local-process --cpus 0", "0 is not in the range"),
        ("local-process --gpus -1", "-1 is not in the range"),
        ("local-process --memory-mb 0", "0 is not in the range"),
        ("local-process --max three", "'three' is not a valid integer"),
        ("local-process --worker-tag a_b", "'a_b' is not a tag"),
        ("local-process --worker-tag-exclusive", "needs a --worker-tag"),
        ("local-process --worker-max-work-dir-size 2x", "'2x' is not a size"),
        ("local-process --pool ../x", "'../x' is not a name for a pool"),
        ("local-process --worker-executable ''", "is not a command"),
        ("local-process --no-such-option", "No such option"),
        ("local-process --server localhost:2900", "is not an address"),
        ("local-process --password-file /no/such/file", "cannot be read"),
        ("local-process -o json", "goes with --plan"),
        ("local-process --once --metrics-port 0", "--metrics-port serves nobody with --once"),
        ("local-process --once --terminate-on-exit", "goes without --once"),
        ("local-process --metrics-port 65536", "not in the range"),
        ("local-process --log-format xml", "'xml' is not one of"),
        ("no-such-backend", "No such command 'no-such-backend'"),
        ("--max 3", "name a backend or a command: local-process"),
        ("status --pool never", "never"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    words = [word.strip("'") for word in line.split(" ")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("worker-manager: ")
    assert error.count("\n") == 1


def test_no_credentials_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local-process", "--server", URL]) == 1
    error = capsys.readouterr().err
    assert "no credentials for http://127.0.0.1:9" in error
    assert error.count("\n") == 1


@contextmanager
def full_disk() -> Iterator[None]:
    """No file takes another byte of this process: for the shortest time, since pytest may write its
    report to one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_home_on_a_full_disk_is_named_and_nothing_is_left_of_the_attempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    with full_disk():
        code = main(["local-process", "--server", URL])
    assert code == 2
    error = capsys.readouterr().err
    assert f"the home {tmp_path}/home cannot be used (File too large)" in error
    assert list((tmp_path / "home").iterdir()) == []


def test_a_pools_file_that_a_full_disk_does_not_take_is_named_and_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pools.toml"
    with full_disk():
        code = main(["init", "local-process", "--non-interactive", "--file", str(file)])
    assert code == 1
    assert capsys.readouterr().err == f"worker-manager: {file}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_a_server_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    assert main(["local-process", "--server", URL, "--plan"]) == 1
    error = capsys.readouterr().err
    assert "no answer from http://127.0.0.1:9" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_the_help_of_a_backend_shows_every_option_of_cl_worker_manager(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["local-process", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (
        *("server", "temp-session", "min-workers", "max-workers", "search", "verbose"),
        *("sleep-time", "restart-after-seconds", "no-prefilter", "once"),
        *("min-seconds-between-workers", "worker-tag", "worker-work-dir-prefix"),
        *("worker-max-work-dir-size", "worker-delete-work-dir-on-exit", "worker-idle-seconds"),
        *("worker-download-dependencies-max-retries", "worker-checkin-frequency-seconds"),
        *("worker-exit-after-num-runs", "worker-pass-down-termination"),
        *("worker-exit-on-exception", "worker-tag-exclusive", "worker-group"),
        *("worker-executable", "worker-shared-memory-size-gb", "worker-preemptible"),
        *("min", "max", "plan", "pool", "cpus", "gpus", "memory-mb", "terminate-on-exit"),
        *("metrics-port", "metrics-host", "log-format"),
    ):
        assert f"--{option}" in shown


def test_status_of_a_home_without_pools_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["status"]) == 0
    assert "worker-manager local-process" in capsys.readouterr().out
    assert main(["status", "-o", "json"]) == 0
    assert capsys.readouterr().out == '{"pools": []}\n'
    assert not (tmp_path / "home").exists()


def test_status_shows_what_a_service_says_as_it_says_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"worker": "w-1", "state": "ended", "created": 1.0, "ended": 1.0, "exit_code": 127}
    job |= {"cause": "failed", "why": "exec [/bin/sh] [red]x :warning:"}
    pool = {"pool": "p", "server": URL, "manager": None, "error": "", "file_problems": []}
    pool |= {"until": None, "last": None, "jobs": [job], "min_workers": 0, "max_workers": 1}
    pool |= {"launched": 1, "launched_lately": 0, "failures_lately": {}, "cost": None}
    monkeypatch.setattr("manager.commands.status.pools_document", lambda installation: [pool])
    assert main(["status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exec [/bin/sh] [red]x :warning:" in shown


@pytest.mark.parametrize(
    "command", ["status", "top", "explain now", "costs", "local-process --plan"]
)
def test_a_damaged_ledger_is_said_to_be_that(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "token")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ledger.db").write_text("no ledger")
    assert main(command.split()) == 1
    said = capsys.readouterr().err
    assert "the ledger of this home cannot be used: file is not a database: see worker-m" in said
    assert len(said.splitlines()) == 1
