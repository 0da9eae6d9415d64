"""A copy of what is in terraform/, for a test to initialise, apply and destroy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from manager.options import pool_options

SOURCE = Path(__file__).parents[2] / "terraform"
SECONDS = 400.0


@dataclass(frozen=True, slots=True)
class Runner:
    """How terraform gets to its providers. ``before``: what stands before it, by directory."""

    environment: dict[str, str]
    init_options: tuple[str, ...] = ()
    before: Callable[[Path], tuple[str, ...]] = lambda directory: ()


def with_moto(mirror: Path, endpoint: str) -> Runner:
    """AWS's own provider, out of a mirror; AWS is at ``endpoint``."""
    environment = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }
    return Runner(environment, (f"-plugin-dir={mirror}",))


def with_schemas(program: Path, python: Path) -> Runner:
    """Stand-ins for the providers of Azure and Google Cloud: they know what there is, and make
    things in the state alone."""
    return Runner({"PYTHON": str(python)}, (), lambda directory: (str(program), str(directory)))


class TerraformModule:
    """One root module, by its path in terraform/. ``runner``: what runs `terraform` in it."""

    def __init__(self, directory: Path, root: str, runner: Runner) -> None:
        copy = directory / "terraform"
        if not copy.exists():
            left_out = shutil.ignore_patterns(".terraform*", "*.tfstate*")
            shutil.copytree(SOURCE, copy, ignore=left_out)
        self.directory = copy / root
        self._runner = runner
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TF_", "AWS_"))
        } | {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **runner.environment}

    def run(self, verb: str, *options: str, expected: int = 0) -> str:
        """What terraform says on its standard output."""
        done = subprocess.run(
            [
                *self._runner.before(self.directory),
                *("terraform", *verb.split(), "-no-color", *options),
            ],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == expected, f"terraform {verb}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def initialise(self) -> None:
        self.run("init", "-input=false", *self._runner.init_options)

    def outputs(self) -> dict[str, Any]:
        return {
            name: output["value"]
            for name, output in json.loads(self.run("output", "-json")).items()
        }


def settings(backend: ModuleType, options: Sequence[str]) -> dict[str, Any]:
    """What the command of a backend makes of its options. Raises click.UsageError."""
    command = click.Command("manager", params=[*pool_options(), *backend.options()])
    return command.make_context("manager", list(options)).params
