"""The options of `worker-manager local-docker`, and the backend made of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from backends.base import Context
from backends.resources import resource_options

if TYPE_CHECKING:
    from backends.local_docker.backend import LocalDocker


@dataclass(frozen=True, slots=True)
class Settings:
    """What every worker's container is made with.

    ``runtime``: what workers run bundles with: `docker`, so that the engine's socket is mounted, or
    `process`, inside the worker's own container.
    """

    image: str
    runtime: str = "docker"
    network: str = "host"
    cpus: int = 1


def options() -> list[click.Option]:
    """Where cl-worker-manager has an option of the kind (`--cpus`, `--gpus`, `--memory-mb`), it is
    named as there."""
    return [
        click.Option(
            ["--image"],
            required=True,
            metavar="REFERENCE",
            help="Image of the workers; `bundle-worker` is on its PATH.",
        ),
        click.Option(
            ["--runtime"],
            type=click.Choice(["docker", "process"]),
            default="docker",
            show_default=True,
            help="Run bundles in containers beside the worker's, or as processes inside it.",
        ),
        click.Option(
            ["--network"],
            default="host",
            show_default=True,
            metavar="NAME",
            help="The workers' network; `host` reaches servers on 127.0.0.1 of this machine.",
        ),
        *resource_options(),
    ]


def create(context: Context, settings: Mapping[str, Any]) -> LocalDocker:
    """The backend. Raises Invalid when the SDK is not installed, or DOCKER_HOST makes no sense."""
    from backends.base import Invalid

    try:
        from backends.local_docker.backend import LocalDocker
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "backends":
            raise
        raise Invalid(
            f"local-docker needs {error.name}: pip install 'worker-manager[docker]'"
        ) from error
    return LocalDocker(
        context,
        Settings(settings["image"], settings["runtime"], settings["network"], settings["cpus"]),
    )
