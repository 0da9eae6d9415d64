"""The options of GCP Batch, and what they come to: a value that the other modules read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from backends.addresses import check_url
from backends.base import Invalid
from backends.resources import resource_options

_SECRET_PATTERN = re.compile(r"projects/[^/\s]+/secrets/[A-Za-z0-9_-]{1,255}")
_WORD_PATTERN = re.compile(r"[^\s\"'\\]+")

PROVISIONING = ("standard", "spot", "flex-start")


def options() -> list[click.Option]:
    return [
        click.Option(
            ["--project"],
            required=True,
            envvar="GOOGLE_CLOUD_PROJECT",
            show_envvar=True,
            help="The Google Cloud project.",
        ),
        click.Option(
            ["--region"],
            required=True,
            envvar="GOOGLE_CLOUD_REGION",
            show_envvar=True,
            help="Where jobs are made, such as europe-west4.",
        ),
        click.Option(["--image"], required=True, help="The image that a worker runs in."),
        *resource_options(),
        click.Option(["--gpu-type"], metavar="TYPE", help="Such as nvidia-tesla-t4; with --gpus."),
        click.Option(
            ["--machine-type"],
            metavar="TYPE",
            help="Such as e2-standard-8.  [default: what fits best, says GCP Batch]",
        ),
        click.Option(
            ["--provisioning"],
            type=click.Choice(PROVISIONING),
            default="standard",
            show_default=True,
            help="spot machines may be taken back at any time; their workers are started again.",
        ),
        click.Option(
            ["--zones"],
            metavar="ZONE,…",
            help="Zones of the region that machines may be in.  [default: all]",
        ),
        click.Option(["--network"], help="VPC of the machines.  [default: that of the project]"),
        click.Option(["--subnetwork"], help="Subnetwork of the machines, with --network."),
        click.Option(
            ["--no-external-ip"], is_flag=True, help="Machines have no address of the internet."
        ),
        click.Option(
            ["--service-account"],
            metavar="EMAIL",
            help="Whom the machines are.  [default: that of Compute Engine]",
        ),
        click.Option(
            ["--secret"],
            metavar="NAME",
            help="projects/PROJECT/secrets/NAME: where workers get their credentials.",
        ),
        click.Option(
            ["--max-run-hours"],
            type=click.FloatRange(min=0.1, max=336),
            help="A worker that runs longer is ended.  [default: GCP Batch's limit, 14 days]",
        ),
        click.Option(
            ["--workers-per-job"],
            type=click.IntRange(min=1, max=5000),
            default=1,
            show_default=True,
            help="Above 1, one call launches so many, and they can only be ended together.",
        ),
        click.Option(
            ["--transport"],
            type=click.Choice(["grpc", "rest"]),
            default="grpc",
            show_default=True,
            help="How Google is spoken to. Proxies often know rest only.",
        ),
        click.Option(["--endpoint"], metavar="URL", help="Of GCP Batch, if it is a private one."),
        click.Option(
            ["--secret-endpoint"], metavar="URL", help="Of Secret Manager, if it is a private one."
        ),
        click.Option(
            ["--logging-endpoint"], metavar="URL", help="Of Cloud Logging, if it is a private one."
        ),
    ]


@dataclass(frozen=True, slots=True)
class GcpSettings:
    """The options, checked one by one."""

    project: str
    region: str
    image: str
    gpu_type: str | None = None
    machine_type: str | None = None
    provisioning: str = "standard"
    zones: tuple[str, ...] = ()
    network: str | None = None
    subnetwork: str | None = None
    no_external_ip: bool = False
    service_account: str | None = None
    secret: str | None = None
    max_run_hours: float | None = None
    workers_per_job: int = 1
    transport: str = "grpc"
    endpoint: str | None = None
    secret_endpoint: str | None = None
    logging_endpoint: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> GcpSettings:
        """Raises Invalid, which names the option."""
        given = {name: settings[name] for name in cls.__slots__ if name in settings}
        zones = str(given.get("zones") or "")
        given["zones"] = tuple(zone.strip() for zone in zones.split(",") if zone.strip())
        read = cls(**given)
        for option, value in (
            ("--project", read.project),
            ("--region", read.region),
            ("--image", read.image),
        ):
            if not _WORD_PATTERN.fullmatch(value or ""):
                raise Invalid(f"{option} {value!r} must be one word without quotes")
        for zone in read.zones:
            if not zone.startswith(f"{read.region}-"):
                raise Invalid(f"--zones {zone!r} is no zone of the region {read.region}")
        if settings.get("gpus") and not read.gpu_type and not read.machine_type:
            raise Invalid(
                "--gpus needs --gpu-type, such as nvidia-tesla-t4, or a --machine-type with gpus"
            )
        if read.subnetwork and not read.network:
            raise Invalid("--subnetwork needs the --network that it is of")
        if read.secret is not None and not _SECRET_PATTERN.fullmatch(read.secret):
            raise Invalid(f"--secret {read.secret!r} is not of the form projects/…/secrets/…")
        for option, url in (
            ("--endpoint", read.endpoint),
            ("--secret-endpoint", read.secret_endpoint),
            ("--logging-endpoint", read.logging_endpoint),
        ):
            if url is not None:
                check_url(option, url)
        return read

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.region}"
