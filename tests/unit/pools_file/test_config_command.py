from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manager.cli import main

FILE = """\
search = ["a"]
[budget]
per-day = 3
[defaults]
cpus = 4
[[pools]]
name = "one"
backend = "local-process"
max-workers = 3
[[pools]]
name = "two"
backend = "azure-batch"
account-key = "c2VjcmV0"
job-id = "j"
image = "i"
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("SERVER", "TOKEN"):
        monkeypatch.delenv(f"WORKER_MANAGER_{name}", raising=False)
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AZURE_BATCH_ENDPOINT", "https://x")
    return tmp_path / "home"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pools.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main(["config", *map(str, words), "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_value_of_a_file_says_where_it_comes_from(
    path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(capsys, path, "--sleep-time", "2")
    assert document["set"]["search"] == {"value": ["a"], "source": f"{path}:1"}
    assert document["set"]["sleep-time"] == {"value": 2.0, "source": "command line"}
    assert document["set"]["home"] == {
        "value": str(home),
        "source": "environment variable WORKER_MANAGER_HOME",
    }
    assert document["set"]["server"]["source"] == "the server of this home"
    assert document["budget"]["per-day"] == {"value": 3.0, "source": f"{path}:3"}
    assert document["budget"]["soft-fraction"] == {"value": 0.8, "source": "default"}
    one, two = (pool["options"] for pool in document["pools"])
    assert one["backend"] == {"value": "local-process", "source": f"{path}:8"}
    assert one["cpus"] == {"value": 4, "source": f"{path}:5 [defaults]"}
    assert one["max-workers"] == {"value": 3, "source": f"{path}:9"}
    assert one["min-workers"] == {"value": 1, "source": "default"}
    assert two["service-url"] == {
        "value": "https://x",
        "source": "environment variable AZURE_BATCH_ENDPOINT",
    }
    assert not {"once", "plan", "verbose", "search", "pool"} & one.keys()


def test_every_option_of_a_pool_is_shown_and_no_secret(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = run(capsys, path)["pools"][1]["options"]
    assert two["account-key"] == {"value": None, "source": f"{path}:13", "is_secret": True}
    assert two["log-container-url"] == {"value": None, "source": "default"}
    assert main(["config", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"# account-key: not shown; {path}:13" in said
    assert "c2VjcmV0" not in said


def test_a_backend_with_its_options_is_shown_as_its_command_would_take_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["slurm", "--max", "3"], ["--max", "3", "slurm"]):
        document = run(capsys, *words)
        assert document["backend"]["value"] == "slurm"
        assert document["max-workers"] == {"value": 3, "source": "command line"}
        assert document["pool"] == {"value": "slurm", "source": "default"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"),
        (["no-such.toml"], "no-such.toml cannot be read"),
        (["slurm", "--max", "x"], "'x' is not a valid integer"),
        (["slurm", "--min", "11"], "--min-workers 11 is more than --max-workers 10"),
        (["--schema", "x"], "leave out x"),
        (["slurm", "--no-such"], "No such option"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
