from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from manager.cli import main
from manager.commands.init import init_command
from manager.pools_file.reading import load

SERVER = "https://bundles.example.org"


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        *("WORKER_MANAGER_SERVER", "WORKER_MANAGER_TOKEN", "CODALAB_USERNAME", "CODALAB_PASSWORD"),
        *("AZURE_BATCH_ENDPOINT", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def init(*words: str, answers: tuple[str, ...] = ()) -> Result:
    """`worker-manager init WORDS…` before somebody who types these lines."""
    return CliRunner().invoke(init_command(), words, input="".join(f"{a}\n" for a in answers))


def test_what_is_asked_for_is_in_the_file(tmp_path: Path) -> None:
    done = init("slurm", answers=(SERVER, "cpu", "", "8", "0", "16000", "40", "me", 'sec"ret'))
    assert done.exit_code == 0, done.output
    assert tomllib.loads(Path("pools.toml").read_text()) == {
        "server": SERVER,
        "password-file": str(tmp_path / "password"),
        "pools": [
            {
                "name": "slurm",
                "backend": "slurm",
                "partition": "cpu",
                "cpus": 8,
                "gpus": 0,
                "memory-mb": 16000,
                "max-workers": 40,
            }
        ],
    }
    assert Path("password").read_text() == 'me\nsec"ret\n'
    assert Path("password").stat().st_mode & 0o777 == 0o600
    assert 'sec"ret' not in done.output


def test_an_answer_that_makes_no_sense_is_asked_for_again() -> None:
    done = init("local-process", answers=(SERVER, "none", "2", "0", "1024", "3", ""))
    assert done.exit_code == 0, done.output
    assert "'none' is not a valid integer" in done.output
    (pool,) = tomllib.loads(Path("pools.toml").read_text())["pools"]
    assert pool["cpus"] == 2


def test_what_a_backend_cannot_do_without_is_asked_for_until_it_is_there() -> None:
    done = init("local-docker", "--server", SERVER, answers=("", "worker:1", "", "", "", "", ""))
    assert done.exit_code == 0, done.output
    (pool,) = tomllib.loads(Path("pools.toml").read_text())["pools"]
    assert pool["image"] == "worker:1"


def test_no_credentials_are_asked_for_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    done = init("local-process", "--server", SERVER, answers=("", "", "", ""))
    assert done.exit_code == 0, done.output
    assert "Your name" not in done.output
    assert not Path("password").exists()


@pytest.mark.parametrize(
    "line",
    [
        "local-process",
        "slurm --partition cpu --time 2-12 --gpus 1 --gpu-type a100",
        "local-docker --image worker:1",
        "aws-batch --image worker:1 --job-queue spot",
        "azure-batch --image w --service-url https://a.b.batch.azure.com --job-id j --pool-id p",
        "gcp-batch --image w --project p --region europe-west4 --provisioning spot",
    ],
)
def test_what_the_options_say_is_read_from_the_file(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    common = ("--server", SERVER, "--search", "a b", "--min", "0", "--price-per-hour", "0.5")
    backend, *own = line.split()
    assert init(backend, "--non-interactive", *common, *own).exit_code == 0
    (pool,) = load(Path("pools.toml")).pools
    assert (pool.name, pool.backend_name) == (backend, backend)
    assert pool.settings["server"] == SERVER
    assert pool.settings["search"] == ("a b",)
    assert pool.settings["min_workers"] == 0
    assert pool.settings["price_per_hour"] == 0.5
    for option, value in zip(own[::2], own[1::2], strict=True):
        assert str(pool.settings[option[2:].replace("-", "_")]) == value


def test_words_keep_their_quotes_and_signs() -> None:
    words = ['a"b\\c', "é \U0001f600", "\x7f", "#no"]
    searched = [word for text in words for word in ("--search", text)]
    assert init("local-process", "--non-interactive", *searched).exit_code == 0
    assert tomllib.loads(Path("pools.toml").read_text())["search"] == words


def test_nothing_is_asked_for_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "gcp-batch", "--non-interactive"]) == 2
    assert "not given: --project, --region, --image" in capsys.readouterr().err
    assert not Path("pools.toml").exists()


def test_whoever_goes_away_before_the_last_answer_is_told_that_nothing_is_written() -> None:
    done = init("slurm", answers=(SERVER,))
    assert done.exit_code == 2
    assert "nothing is written: --non-interactive takes options alone" in done.output
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (".", "is a directory"),
        ("nowhere/pools.toml", "nowhere is no directory to write to"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_asked(
    file: str, said: str
) -> None:
    done = init("slurm", "--file", file)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert "--server" not in done.output


@pytest.mark.parametrize("command", ["init", "doctor"])
def test_a_backend_that_there_is_not_is_told_which_there_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "slrum"]) == 2
    said = capsys.readouterr().err
    assert "there is no backend 'slrum': name local-process, local-docker, slurm," in said
    assert ("a file whose name ends in .toml" in said) == (command == "doctor")


def test_limits_that_contradict_each_other_are_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["init", "slurm", "--non-interactive", "--min", "3", "--max", "2"]) == 2
    assert "--min-workers 3 is more than --max-workers 2" in capsys.readouterr().err
    assert not Path("pools.toml").exists()


def test_a_file_that_is_there_stays_unless_it_is_to_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = Path("pools.toml")
    file.write_text("mine")
    assert main(["init", "slurm", "--non-interactive"]) == 2
    assert "pools.toml is there: --force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["init", "slurm", "--non-interactive", "--force"]) == 0
    assert tomllib.loads(file.read_text())["pools"]
    assert [path.name for path in Path().iterdir()] == ["pools.toml"]


def test_a_file_with_a_secret_is_its_owners_alone() -> None:
    azure = ("azure-batch", "--non-interactive", "--image", "w", "--job-id", "j")
    words = (*azure, "--service-url", "https://a.b.batch.azure.com")
    assert init(*words, "--file", "open.toml").exit_code == 0
    assert init(*words, "--account-key", "a2V5", "--file", "shut.toml").exit_code == 0
    assert Path("open.toml").stat().st_mode & 0o044
    assert Path("shut.toml").stat().st_mode & 0o077 == 0


def test_the_home_is_in_the_file_only_when_it_was_said() -> None:
    assert init("slurm", "--non-interactive").exit_code == 0
    assert "home" not in tomllib.loads(Path("pools.toml").read_text())
    assert init("slurm", "--non-interactive", "--force", "--home", "/srv/home").exit_code == 0
    assert tomllib.loads(Path("pools.toml").read_text())["home"] == "/srv/home"


def test_what_comes_next_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "slurm", "--non-interactive", "--file", "campus.toml"]) == 0
    said = capsys.readouterr().out
    assert "worker-manager run campus.toml --plan" in said
    assert "deploy/slurm/install --pools campus.toml" in said


def test_what_comes_next_can_be_typed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--non-interactive", "--image", "w", "--file", "our queue.toml")
    assert main(["init", "aws-batch", *words]) == 0
    said = capsys.readouterr().out
    assert "worker-manager doctor 'our queue.toml'" in said
    assert "cd terraform/aws/examples/minimal && terraform init && terraform apply" in said


def test_what_is_no_file_is_not_replaced_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["init", "slurm", "--non-interactive", "--force", "--file", "pipe"]) == 2
    assert "pipe is no file: give another --file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
