"""The options of Azure Batch, and what they come to: a value that the other modules read.

Named as cl-worker-manager names them where it has them. Asks nothing of anyone; where the keys
of accounts come from is told here, and read in `connection` and `storage` when they are needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import click

from backends.addresses import check_url
from backends.base import Invalid
from backends.resources import resource_options

ACCOUNT_KEY_VARIABLE = "AZURE_BATCH_ACCESS_KEY"
ENDPOINT_VARIABLE = "AZURE_BATCH_ENDPOINT"
ACCOUNT_VARIABLE = "AZURE_BATCH_ACCOUNT"
"""The three that Azure's own command line reads."""

_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IDENTITY_PATTERN = re.compile(r"/subscriptions/[^/]+/resourceGroups/[^/]+/.+", re.IGNORECASE)


def options() -> list[click.Option]:
    return [
        click.Option(
            ["service_url", "--service-url", "--endpoint"],
            required=True,
            envvar=ENDPOINT_VARIABLE,
            show_envvar=True,
            metavar="URL",
            help="The Batch account: https://ACCOUNT.REGION.batch.azure.com",
        ),
        click.Option(
            ["--account-name"],
            envvar=ACCOUNT_VARIABLE,
            show_envvar=True,
            help="The account, where its key is used; else an Entra identity is (see the docs).",
        ),
        click.Option(
            ["--account-key"],
            hide_input=True,
            metavar="KEY",
            help=f"Its key. Anybody on this machine sees it: {ACCOUNT_KEY_VARIABLE} is better.",
        ),
        click.Option(
            ["--account-key-file"], metavar="FILE", help="Its key in a file, read when it changes."
        ),
        click.Option(
            ["--job-id"],
            required=True,
            metavar="ID",
            help="The Azure Batch job that workers are tasks of; made when it is missing.",
        ),
        click.Option(
            ["--pool-id"],
            metavar="ID",
            help="The Azure Batch pool that a job is made for. It must exist.",
        ),
        click.Option(["--image"], required=True, help="The image that a worker runs in."),
        click.Option(
            ["--user"], default="root", show_default=True, help="The user in that container."
        ),
        *resource_options(),
        click.Option(
            ["--slots"],
            type=click.IntRange(min=1, max=256),
            default=1,
            show_default=True,
            help="Task slots of a node that one worker takes.",
        ),
        click.Option(
            ["--secrets-container-url"],
            metavar="URL",
            help="A blob container through which workers get their credentials.",
        ),
        click.Option(
            ["--identity"],
            metavar="RESOURCE-ID",
            help="The pool's user-assigned identity that reads and writes blobs for its nodes.",
        ),
        click.Option(
            ["--log-container-url"],
            hide_input=True,
            metavar="URL",
            help="A blob container for what workers print, when they end.",
        ),
    ]


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """The options, checked one by one. ``account_key`` is the flag's; None in most cases."""

    service_url: str
    job_id: str
    image: str
    account_name: str | None = None
    account_key: str | None = field(default=None, repr=False)
    account_key_file: str | None = None
    pool_id: str | None = None
    user: str = "root"
    slots: int = 1
    secrets_container_url: str | None = None
    identity: str | None = None
    log_container_url: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> AzureSettings:
        """Raises Invalid, which names the option."""
        read = cls(**{name: settings[name] for name in cls.__slots__ if name in settings})
        check_url("--service-url", read.service_url)
        for option, value in (("--job-id", read.job_id), ("--pool-id", read.pool_id)):
            if value is not None and not _ID_PATTERN.fullmatch(value):
                raise Invalid(f"{option} {value!r} is no id: up to 64 letters, digits, - and _")
        for option, value in (("--image", read.image), ("--user", read.user)):
            # They become words of a command line that Azure Batch splits at spaces.
            if not value or re.search(r"""[\s"'\\]""", value):
                raise Invalid(f"{option} {value!r} must be one word without quotes")
        if read.secrets_container_url is not None:
            _check_container("--secrets-container-url", read.secrets_container_url)
            if urlsplit(read.secrets_container_url).query:
                raise Invalid(
                    "--secrets-container-url must have no signature: give the plain URL of the "
                    "container, and AZURE_STORAGE_KEY or an identity that may write to it"
                )
        if read.log_container_url is not None:
            _check_container("--log-container-url", read.log_container_url)
            if not read.identity and not urlsplit(read.log_container_url).query:
                raise Invalid(
                    "--log-container-url needs an --identity of the pool that may write to it, "
                    "or a signature (SAS) in the URL"
                )
        if read.identity is not None and not _IDENTITY_PATTERN.fullmatch(read.identity):
            raise Invalid(
                f"--identity {read.identity!r} is no resource id: give "
                "/subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/"
                "userAssignedIdentities/NAME"
            )
        return read


def _check_container(option: str, url: str) -> None:
    check_url(option, url)
    if not urlsplit(url).path.strip("/"):
        raise Invalid(
            f"{option} {_bare(url)!r} names no container: "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER"
        )


def _bare(url: str) -> str:
    """A URL without what may be a signature."""
    return url.partition("?")[0]
