"""Who may act in a name, of several who want to: leases, as docs/protocol.md has them.

Operations over the books. What is written is who holds a lease; until when is known in memory
alone, so that a renewal costs no commit. After a restart every lease is a full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, insert, update

from bundles.errors import Conflict
from bundles.server import schema
from bundles.server.accounts import Caller
from bundles.server.books import Books
from bundles.server.entries import Lease

_TABLE = schema.lease.c
_UPDATE = (
    update(schema.lease)
    .where(_TABLE.user_id == bindparam("key_user_id"), _TABLE.name == bindparam("key_name"))
    .values(
        fence=bindparam("new_fence"),
        holder=bindparam("new_holder"),
        ttl_seconds=bindparam("new_ttl_seconds"),
    )
)


class Held(Conflict):
    """Somebody else has one of the leases, for ``seconds`` more if nothing is heard of them."""

    def __init__(self, name: str, holder: str, seconds: float) -> None:
        super().__init__(f"{name} is held by {holder}")
        self.seconds = seconds


class Lost(Conflict):
    """The lease has changed hands, or was given back."""


def acquire(
    books: Books, caller: Caller, names: Sequence[str], holder: str, ttl_seconds: float
) -> dict[str, int]:
    """Take the leases of all these names, or none; returns their fences. Asked again by the holder
    it is a renewal. Raises Held."""
    found = {name: books.leases.get((caller.id, name)) for name in names}
    for name, lease in found.items():
        if lease and lease.holder not in (None, holder) and books.instant < lease.end:
            raise Held(name, str(lease.holder), lease.end - books.instant)
    fences: dict[str, int] = {}
    for name, lease in found.items():
        if lease is None:
            lease = books.leases[caller.id, name] = Lease(caller.id, name, ttl_seconds)
        if lease.holder != holder or lease.ttl_seconds != ttl_seconds:
            if lease.holder != holder:
                lease.fence += 1
            lease.holder, lease.ttl_seconds = holder, ttl_seconds
            _write(books, lease, is_new=found[name] is None)
        lease.end = books.instant + ttl_seconds
        fences[name] = lease.fence
    return fences


def renew(books: Books, caller: Caller, holder: str, fences: Mapping[str, int]) -> None:
    """Go on holding these leases, also after their time, if nobody took them. Raises Lost, and
    renews none then."""
    leases = [_find(books, caller, name, fence, holder) for name, fence in fences.items()]
    for lease in leases:
        lease.end = books.instant + lease.ttl_seconds


def release(books: Books, caller: Caller, holder: str, fences: Mapping[str, int]) -> None:
    """Give these leases back; those that are somebody else's by now are theirs."""
    for name, fence in fences.items():
        lease = books.leases.get((caller.id, name))
        if lease is not None and (lease.holder, lease.fence) == (holder, fence):
            lease.holder = None
            _write(books, lease)
            books.effects.is_lease_free = True


def check(books: Books, caller: Caller, name: str, fence: int) -> None:
    """Raises Lost unless the lease with this fence is held now."""
    lease = _find(books, caller, name, fence)
    if books.instant >= lease.end:
        raise Lost(f"the lease of {name} has run out: renew it first")


def _find(books: Books, caller: Caller, name: str, fence: int, holder: str | None = None) -> Lease:
    lease = books.leases.get((caller.id, name))
    if lease is None or lease.holder is None or lease.fence != fence:
        raise Lost(f"the lease of {name} with fence {fence} is no longer held: acquire it anew")
    if holder is not None and lease.holder != holder:
        raise Lost(f"{name} is held by {lease.holder}")
    return lease


def _write(books: Books, lease: Lease, *, is_new: bool = False) -> None:
    columns = {
        "fence": lease.fence,
        "holder": lease.holder,
        "ttl_seconds": lease.ttl_seconds,
    }
    if is_new:
        row = {"user_id": lease.user_id, "name": lease.name, **columns}
        books.statements.append((insert(schema.lease), [row]))
        return
    changes = {f"new_{name}": value for name, value in columns.items()}
    keys = {"key_user_id": lease.user_id, "key_name": lease.name}
    books.statements.append((_UPDATE, [changes | keys]))
