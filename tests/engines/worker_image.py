"""The image of `deploy/Dockerfile`, built on a base of this machine's own files.

For every test that runs workers in containers: ask for the session's fixture ``worker_image``.

    def test_something(worker_image: WorkerImage, docker_engine: DockerEngine) -> None:
        docker_engine.command("run", "--rm", worker_image.reference, "--version")

It lies in the engine of the fixture ``docker_engine``. For another engine there is
``load_into(engine)``, and for one that pulls, ``push(registry)``, which returns the reference to
pull. Its user is 1000:1000, its entry point `bundle-worker`; bundles can run in it as processes
(it has a shell and the tools of ``docker_engine.TOOLS``), or in containers when the engine's socket
is mounted: `WorkerImage.socket_options` says how.

It is built once a session, in about 40 seconds, which count for the first test that asks for it:
mark it with `pytest.mark.timeout(600)`. No step of it has a network, so that the wheels are
gathered before, with the pins of constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import host_files
from docker_engine import TOOLS, DockerEngine, Registry

from bundles import __version__

BASE = "localhost/python:1"
REFERENCE = "localhost/bundle-worker:1"
ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 300.0
EXTRAS = "all"
"""Of the manager's image, as the Dockerfile has it; the worker's has `docker`."""

ABOUT = {"version": __version__, "revision": "a1b2c3", "source": "https://example.org/repository"}
"""What the images' labels are to say."""

BUILD_TOOLS = ("chown",)
"""What the steps of the Dockerfile call, besides Python and those."""


class WorkerImage:
    """``reference`` names it in ``engine``."""

    reference = REFERENCE

    def __init__(self, engine: DockerEngine) -> None:
        self.engine = engine
        self._context = Path()

    def build(self, directory: Path) -> None:
        """``directory``: empty, for what the image is made of."""
        base = host_files.archive((*TOOLS, *BUILD_TOOLS), with_python=True)
        self.engine.command("import", "-", BASE, content=base)
        self._context = directory / "context"
        _copy_sources(self._context)
        _gather_wheels(self._context / "wheels")
        self.build_target("worker", self.reference)

    def build_target(self, target: str, reference: str) -> None:
        """Another image of the same Dockerfile, on the layers of this one."""
        about = [f"--build-arg={name.upper()}={value}" for name, value in ABOUT.items()]
        subprocess.run(
            [
                *("docker", "build", "--network", "none", "--target", target, "--tag", reference),
                *("--build-arg", f"BASE={BASE}", "--build-arg", "PIP_NO_INDEX=1", *about),
                *("--file", str(self._context / "deploy" / "Dockerfile"), str(self._context)),
            ],
            # BuildKit is a program of its own, which not every machine has.
            env=os.environ | self.engine.env | {"DOCKER_BUILDKIT": "0"},
            timeout=BUILD_SECONDS,
            check=True,
        )

    def push(self, registry: Registry, name: str = "bundle-worker:1") -> str:
        """Put it into a registry; the reference to pull there."""
        reference = f"{registry.at}/{name}"
        self.engine.command("tag", self.reference, reference)
        try:
            self.engine.command("push", reference)
        finally:
            self.engine.command("rmi", reference)
        return reference

    def load_into(self, engine: DockerEngine) -> None:
        """Have it in another engine, under the same reference."""
        with subprocess.Popen(
            ["docker", "save", self.reference],
            env=os.environ | self.engine.env,
            stdout=subprocess.PIPE,
        ) as saving:
            subprocess.run(
                ["docker", "load"],
                env=os.environ | engine.env,
                stdin=saving.stdout,
                stdout=subprocess.DEVNULL,
                timeout=BUILD_SECONDS,
                check=True,
            )
        assert saving.returncode == 0

    def with_token(self, token: str) -> str:
        """The image with a token in it, for services that hand containers no secrets."""
        reference = "localhost/bundle-worker-with-token:1"
        self.engine.command(
            *("build", "--quiet", "--network", "none", "--tag", reference, "-"),
            content=f"FROM {self.reference}\nENV WORKER_MANAGER_TOKEN={token}\n".encode(),
        )
        return reference

    def socket_options(self) -> list[str]:
        """Options of `docker run` for a worker whose bundles are containers of the same engine."""
        socket = self.engine.socket
        return [
            *("--volume", f"{socket}:/var/run/docker.sock"),
            *("--group-add", str(socket.stat().st_gid)),
        ]


def _copy_sources(context: Path) -> None:
    """The repository as `docker build .` would send it."""
    left_out = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    ignored = shutil.ignore_patterns(*(pattern.removeprefix("**/") for pattern in left_out))
    shutil.copytree(ROOT, context, ignore=ignored)
    shutil.copytree(ROOT / "deploy", context / "deploy", dirs_exist_ok=True)
    shutil.copy(ROOT / ".dockerignore", context)


def _gather_wheels(directory: Path) -> None:
    """Everything that this package needs with ``EXTRAS``, its own build included."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)),
            *("--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")),
            *(f"{ROOT}[{EXTRAS}]", "setuptools"),
        ],
        timeout=BUILD_SECONDS,
        check=True,
    )
