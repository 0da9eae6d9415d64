"""Which transitions nobody needs any more, and that they go: the oldest first, a few at a time.

When, is the service's business. The history that is left begins later, as that of a database that
was begun anew: docs/protocol.md says what its readers are told.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from bundles.server import schema
from bundles.server.books import Books

KEPT_SECONDS = 30 * 86400.0
AT_LEAST = 100_000
"""So many are kept, however old they are: more than the feed remembers."""
AT_MOST = 5_000_000
"""No more are kept, however young they are: some 2 GB."""
BATCH = 1000
"""So many go at a time: others who write wait for that long, some 10 ms."""

_TABLE = schema.transition.c


def find_batch(connection: Connection, now: float) -> int | None:
    """The id of the last of the oldest ``BATCH`` transitions, if all of these may go."""
    oldest = select(_TABLE.id, _TABLE.time).order_by(_TABLE.id)
    last = connection.execute(oldest.offset(BATCH - 1).limit(1)).first()
    newest = connection.scalar(select(func.max(_TABLE.id)))
    if last is None or newest is None:
        return None
    newer = newest - last.id  # ids have no gaps
    is_old = last.time < now - KEPT_SECONDS
    if newer >= AT_MOST or (is_old and newer >= AT_LEAST):
        return int(last.id)
    return None


def prune(books: Books, last_id: int) -> None:
    """Delete the transitions up to this one."""
    books.statements.append((delete(schema.transition).where(_TABLE.id <= last_id), []))
