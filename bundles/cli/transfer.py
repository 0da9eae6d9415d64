"""How far a transfer is, on a terminal. Passes the bytes on as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator


def shown(chunks: Iterable[bytes], label: str, size_bytes: int | None = None) -> Iterator[bytes]:
    """The same chunks; while they are taken, stderr shows how many bytes that were, if it is a
    terminal. ``size_bytes``: how many there will be, where that is known."""
    if not sys.stderr.isatty():
        yield from chunks
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    from bundles.cli.output import console, printable

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(printable(label), total=size_bytes)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))
