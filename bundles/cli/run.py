"""`bundles run`: queue a command. Does not wait for it: `bundles wait` does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bundles.cli.options import (
    DURATION,
    SIZE,
    Connection,
    common_options,
    default_name,
    describing_options,
)
from bundles.errors import NotFound, UsageError

if TYPE_CHECKING:
    from bundles.client import Client
    from bundles.model import Bundle, Dependency


class _RunCommand(click.Command):
    """Takes all that follows `--` (or `cl`'s `---`) as the command, however many words it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for position, word in enumerate(args):
            if word in ("--", "---"):
                words = args[position + 1 :]
                command = words[0] if len(words) == 1 else shlex.join(words)
                args = [*args[:position], "--", command]
                break
        return super().parse_args(ctx, args)


def _required(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if not value or not value[-1].strip():
        raise click.UsageError("there is no command: write it last, in quotes", ctx=context)
    if "\0" in value[-1]:
        raise click.UsageError("the command holds a NUL character", ctx=context)
    return value


@click.command(cls=_RunCommand)
@click.argument(
    "words", nargs=-1, metavar="[KEY:UUID[/PATH]]... 'COMMAND'", callback=_required, required=False
)
@describing_options
@click.option(
    "--cpus", "--request-cpus", type=click.IntRange(min=0), metavar="N", default=1,
    show_default=True, help="Processors it gets.",
)  # fmt: skip
@click.option(
    "--gpus", "--request-gpus", type=click.IntRange(min=0), metavar="N", default=0,
    show_default=True, help="GPUs it gets.",
)  # fmt: skip
@click.option(
    "--memory", "--request-memory", type=SIZE, default="2g", show_default=True,
    help="Memory after which it is ended: a number and k, m, g or t.",
)  # fmt: skip
@click.option(
    "--disk", "--request-disk", type=SIZE,
    help="Disk after which it is ended; no limit by default.",
)  # fmt: skip
@click.option(
    "--time", "--request-time", type=DURATION,
    help="Running time after which it is ended: a number and s, m, h or d; no limit by default.",
)  # fmt: skip
@click.option("--image", "--request-docker-image", help="Docker image it runs in.")
@click.option("--queue", "--request-queue", help="Only workers that have this tag.")
@click.option(
    "--priority", "--request-priority", type=int, metavar="N", default=0, show_default=True,
    help="Higher ones start first.",
)  # fmt: skip
@click.option(
    "--network/--no-network", "--request-network", default=True, show_default=True,
    help="Whether it may use the network.",
)  # fmt: skip
@click.option(
    "--allow-failed-dependencies", is_flag=True,
    help="Run it even when what it depends on failed or was killed.",
)  # fmt: skip
@click.option(
    "-x", "--exclude-patterns", multiple=True, metavar="PATTERN",
    help="Do not keep files of its directory that match, such as '*.ckpt'; may be repeated.",
)  # fmt: skip
@click.option(
    "-m", "--memoize", is_flag=True,
    help="Print the bundle that already ran (or runs) this command over these dependencies, "
    "if there is one.",
)  # fmt: skip
@common_options
def run(
    connection: Connection,
    words: tuple[str, ...],
    name: str | None,
    description: str,
    tags: list[str],
    cpus: int,
    gpus: int,
    memory: str,
    disk: str | None,
    time: str | None,
    image: str | None,
    queue: str | None,
    priority: int,
    network: bool,
    allow_failed_dependencies: bool,
    exclude_patterns: tuple[str, ...],
    memoize: bool,
) -> None:
    """Queue COMMAND, to run in a shell beside what it depends on, and print its uuid.

    KEY:UUID/PATH puts the contents of a bundle, or a path in it, at KEY in the directory in
    which COMMAND runs. Without KEY: the last part of PATH, or the bundle's name, is the key.
    What follows -- is the command, in as many words as you like.
    """
    from bundles.cli.creation import create
    from bundles.cli.dependencies import parse_wish
    from bundles.model import new_uuid

    command = words[-1]
    try:
        wishes = [parse_wish(word) for word in words[:-1]]
    except UsageError as error:
        raise UsageError(f"{error}{_quote_hint(words)}") from error
    metadata: dict[str, Any] = {
        "name": name or default_name(f"run-{command}"),
        "description": description,
        "tags": tags,
        "allow_failed_dependencies": allow_failed_dependencies,
        "request_docker_image": image or "",
        "request_time": time or "",
        "request_memory": memory,
        "request_disk": disk or "",
        "request_cpus": cpus,
        "request_gpus": gpus,
        "request_queue": queue or "",
        "request_priority": priority,
        "request_network": network,
        "exclude_patterns": list(exclude_patterns),
        "store": "",
    }
    with connection.client() as client:
        try:
            dependencies = _resolve(client, wishes)
            if memoize:
                earlier = _earlier_run(client, command, dependencies)
                if earlier is not None:
                    click.echo(earlier.uuid)
                    return
            uuid = new_uuid()
            create(
                client,
                {
                    "uuid": uuid,
                    "bundle_type": "run",
                    "command": command,
                    "dependencies": [
                        {
                            "child_path": dependency.child_path,
                            "parent_uuid": dependency.parent_uuid,
                            "parent_path": dependency.parent_path,
                        }
                        for dependency in dependencies
                    ],
                    "metadata": metadata,
                },
            )
        except NotFound as error:
            raise UsageError(f"unknown dependency: {error}{_quote_hint(words)}") from error
    click.echo(uuid)


def _quote_hint(words: Sequence[str]) -> str:
    """For who wrote `run sort a.txt`, where only the last word is the command."""
    if any(":" not in word for word in words[:-1]):
        return "; a command of several words is written in quotes, or after --"
    return ""


def _resolve(client: Client, wishes: Sequence[Any]) -> list[Dependency]:
    from bundles.cli.dependencies import check_keys, parse_key
    from bundles.cli.names import find_bundle, find_uuid
    from bundles.model import Dependency

    found: list[Dependency] = []
    for wish in wishes:
        if wish.key:
            key, uuid = wish.key, find_uuid(client, wish.bundle)
        else:
            bundle = find_bundle(client, wish.bundle)
            key, uuid = parse_key(bundle.name or bundle.uuid), bundle.uuid
        found.append(Dependency(child_path=key, parent_uuid=uuid, parent_path=wish.path))
    check_keys(dependency.child_path for dependency in found)
    return found


def _earlier_run(client: Client, command: str, dependencies: Sequence[Dependency]) -> Bundle | None:
    """The newest run of the same that is ready, else the newest that may yet be."""
    from bundles.model import State

    wanted = {(d.child_path, d.parent_uuid, d.parent_path) for d in dependencies}
    candidates = [
        bundle
        for bundle in client.memoized(command, dependencies)
        if {(d.child_path, d.parent_uuid, d.parent_path) for d in bundle.dependencies} == wanted
        and bundle.state not in (State.FAILED, State.KILLED)
    ]
    return max(
        reversed(candidates),
        key=lambda bundle: (
            bundle.state == State.READY,
            float(bundle.metadata.get("created") or 0),
        ),
        default=None,
    )
