"""A copy of what is in terraform/, for a test to initialise, apply and destroy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "terraform"
SECONDS = 280.0


class TerraformModule:
    """One root module, by its path in terraform/.

    ``mirror``: where its providers are. ``endpoint``: where AWS is.
    """

    def __init__(self, directory: Path, root: str, mirror: Path, endpoint: str) -> None:
        copy = directory / "terraform"
        if not copy.exists():
            left_out = shutil.ignore_patterns(".terraform*", "*.tfstate*")
            shutil.copytree(SOURCE, copy, ignore=left_out)
        self.directory = copy / root
        self._mirror = mirror
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TF_", "AWS_"))
        } | {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": endpoint,
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
        }

    def run(self, verb: str, *options: str, expected: int = 0) -> str:
        """What terraform says on its standard output."""
        done = subprocess.run(
            ["terraform", verb, "-no-color", *options],
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
        self.run("init", "-input=false", f"-plugin-dir={self._mirror}")

    def outputs(self) -> dict[str, Any]:
        return {
            name: output["value"]
            for name, output in json.loads(self.run("output", "-json")).items()
        }
