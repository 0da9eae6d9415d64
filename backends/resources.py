"""The options that every backend has: what one worker is given."""

from __future__ import annotations

import click


def resource_options() -> list[click.Option]:
    """`--cpus`, `--gpus`, `--memory-mb`, with the names and defaults of cl-worker-manager."""
    return [
        click.Option(
            ["--cpus"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Cpus of one worker.",
        ),
        click.Option(
            ["--gpus"],
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Gpus of one worker.",
        ),
        click.Option(
            ["--memory-mb"],
            type=click.IntRange(min=1),
            default=2048,
            show_default=True,
            help="Memory of one worker, in MiB.",
        ),
    ]
