"""docs/worker.md says what the command does: every option and every exit code."""

from __future__ import annotations

import re
from pathlib import Path

import click

from bundles.exits import WorkerExit
from worker.cli import bundle_worker
from worker.stages import Stage

PAGE = (Path(__file__).parents[3] / "docs" / "worker.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_option_is_on_the_page_and_no_other() -> None:
    with click.Context(bundle_worker, **bundle_worker.context_settings) as context:
        options = {
            name
            for parameter in bundle_worker.get_params(context)
            for name in parameter.opts
            if name.startswith("-")
        }
    rows = [line for line in section("Options").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(--?[a-z-]+)", row.split(" | ")[0])}
    assert named == options


def test_every_exit_code_is_on_the_page_and_in_the_help() -> None:
    rows = re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)
    assert [int(row) for row in rows] == sorted(WorkerExit)
    assert bundle_worker.help is not None
    listed = bundle_worker.help.split("Exit codes:")[1]
    assert sorted(int(number) for number in re.findall(r"\b\d+\b", listed)) == sorted(WorkerExit)


def test_the_status_of_every_stage_is_on_the_page() -> None:
    page = section("What a run says of itself")
    for stage in set(Stage) - {Stage.FINISHED, Stage.RESTAGED}:
        assert f"`{stage.replace('_', ' ').capitalize()}`" in page
