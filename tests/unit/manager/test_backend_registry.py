"""Backends by name: ours, plugins, and plugins that do not work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from manager.cli import main
from manager.options import pool_options

URL = "http://127.0.0.1:9"

WORKING = """
import click
def options():
    return [
        click.Option(["--cpus"], type=int, default=1),
        click.Option(["--gpus"], type=int, default=0),
        click.Option(["--memory-mb"], type=int, default=2048),
        click.Option(["--colour"], help="Of the cloud."),
    ]
def create(context, settings):
    raise AssertionError("nothing is created to show help")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory where packages can be installed."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    registry.entries.cache_clear()
    yield place
    registry.entries.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(place)):
            del sys.modules[name]


def install(site: Path, name: str, source: str) -> None:
    """A distribution of one module that offers a backend of that name."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    metadata = site / f"{module}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}\n")


def test_every_backend_of_ours_has_what_the_manager_reads_and_no_option_of_its_own() -> None:
    common = {name for option in pool_options() for name in (option.name, *option.opts)}
    for entry in registry.OURS:
        own = registry.load(entry.name).options()
        assert set(registry.REQUIRED) <= {option.name for option in own}, entry.name
        names = {name for option in own for name in (option.name, *option.opts)}
        assert not names & common, entry.name


def test_no_two_backends_share_a_name_and_the_old_ones_still_work() -> None:
    names = [name for entry in registry.OURS for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    assert registry.find("slurm-batch") is registry.find("slurm")


def test_the_help_of_every_command_loads_no_sdk() -> None:
    program = (
        "import sys; from manager.cli import OTHERS, main; from backends import registry\n"
        "main(['--help'])\n"
        "for name in [*(entry.name for entry in registry.OURS), *OTHERS]: main([name, '--help'])\n"
        "sdks = 'docker boto3 botocore azure google httpx rich sqlalchemy starlette pydantic'\n"
        "print(*(name for name in sdks.split() if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "\n"


def test_a_plugin_s_options_are_on_the_command_line(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "cloud-nine", WORKING)
    assert main(["--help"]) == 0
    assert "cloud-nine" in capsys.readouterr().out
    assert main(["cloud-nine", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--colour" in shown
    assert "--max-workers" in shown
    assert "From cloud-nine 1.2." in shown


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_sdk", "No module named 'no_such_sdk'"),
        ("def options(:", "SyntaxError"),
        ("raise SystemError('not here')", "not here"),
        ("x = 1", "no attribute 'options'"),
        ("def options(): return []", "offers no cpus, gpus, memory_mb, create"),
        (WORKING.replace("def create", "def make"), "offers no create"),
        (WORKING.replace("--colour", "--server"), "every pool has already: server"),
    ],
)
def test_a_broken_plugin_is_named_with_what_is_missing(
    site: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    install(site, "cloud-nine", source)
    assert main(["cloud-nine", "--plan", "--server", URL]) == 2
    error = capsys.readouterr().err
    assert error.startswith("worker-manager: the backend cloud-nine")
    assert said in error
    assert error.count("\n") == 1


def test_a_broken_plugin_stops_no_other(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "cloud-nine", "raise SystemError")
    install(site, "cloud-ten", WORKING)
    assert main(["--help"]) == 0
    assert main(["cloud-ten", "--help"]) == 0
    assert main(["local-process", "--help"]) == 0
    assert main(["status"]) == 0
    assert capsys.readouterr().err == ""


def test_a_plugin_does_not_take_the_place_of_a_backend_of_ours(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "slurm-batch", "raise SystemError")
    install(site, "local-process", "raise SystemError")
    for name in ("slurm-batch", "local-process"):
        assert registry.find(name).plugin is None
        assert main([name, "--help"]) == 0
