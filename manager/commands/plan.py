"""What the next look at some pools would do, said and not done. Changes nothing, anywhere."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from backends.base import Backend, BackendError
from manager.accountant import Accountant
from manager.money import NO_BUDGET, SOFT_FRACTION, Account, Budget, Purse, Terms
from manager.pool import Pool
from manager.sharing import Share, decide_set

if TYPE_CHECKING:
    from manager.ledger import Ledger
    from manager.snapshot import Snapshot

PREVIEWS_SHOWN = 3


def plan(
    pools: Sequence[Pool],
    *,
    as_json: bool,
    budget: Budget = NO_BUDGET,
    soft_fraction: float = SOFT_FRACTION,
) -> int:
    """Print what the next tick would do with pools in this order of preference. ``budget``: of all
    of them together.

    Raises BackendError when the jobs of no pool can be listed, and BundlesError.
    """
    from manager.health import judge
    from manager.ledger import Ledger, PoolRecord
    from manager.staged import StagedBundles, demand_of
    from manager.usable import is_usable

    backends = {pool.name: pool.backend() for pool in pools}
    usable = [pool for pool in pools if is_usable(backends[pool.name])]
    if not usable:
        return 2
    queues = [pool.queue for pool in usable]
    snapshots: dict[str, Snapshot] = {}
    errors: dict[str, BackendError] = {}
    with ExitStack() as stack:
        client = stack.enter_context(usable[0].client())
        ledger = Ledger.read_only(usable[0].installation.ledger_path)
        if ledger is not None:
            stack.enter_context(ledger)
        now = time.time()
        demand, unfit = demand_of(StagedBundles(client, os.environ).read(queues), queues)
        for pool, misfits in zip(usable, unfit, strict=True):
            observer = pool.observer(client, backends[pool.name])
            try:
                seen = observer.observe(ledger, now, demand, misfits, pool.config)
            except BackendError as error:
                errors[pool.name] = error
                continue
            record = ledger.record(pool.name) if ledger else PoolRecord()
            snapshots[pool.name] = judge(record, now).on(seen.snapshot)
        if not snapshots:
            raise next(iter(errors.values()))
        known = [pool for pool in usable if pool.name in snapshots]
        configs = {pool.name: pool.config for pool in known}
        terms = {pool.name: Terms.from_settings(pool.settings) for pool in usable}
        accounts = {name: Account(its) for name, its in terms.items()}
        if ledger is not None:
            accounts = Accountant(ledger).accounts(terms, now)
        purse = Purse(accounts, now, budget, soft_fraction)
        shares = decide_set(demand, snapshots, configs, now, allow=purse.allowance)
        if as_json:
            print(json.dumps(_document(shares, errors)))
            return 0
        for pool in usable:
            if pool.name in errors:
                print(f"{pool.name}: nothing is launched or ended there: {errors[pool.name]}")
            else:
                _show(pool, backends[pool.name], shares[pool.name], ledger)
    return 0


def _show(pool: Pool, backend: Backend, share: Share, ledger: Ledger | None) -> None:
    snapshot, decision = share.snapshot, share.decision
    assert decision is not None
    print(f"{pool.name}: {decision.summary()}")
    for reason in decision.reasons:
        print(f"  {'yes' if reason.held else 'no ':3} {reason.code:15} {reason.sentence}")
    print(
        f"  {snapshot.staged} staged, {snapshot.pending} pending, {snapshot.active} active; "
        "nothing was changed"
    )
    last = ledger.recent(pool.name, 1) if ledger is not None else []
    first = last[0].key.sequence + 1 if last else 1
    previews = _previews(pool, backend, decision.launch, first)
    for preview in previews[:PREVIEWS_SHOWN]:
        print(textwrap.indent(f"would submit:\n{textwrap.indent(preview, '  ')}", "  "))
    if len(previews) > PREVIEWS_SHOWN:
        print(f"  and {len(previews) - PREVIEWS_SHOWN} more like these")


def _document(shares: Mapping[str, Share], errors: Mapping[str, BackendError]) -> dict[str, Any]:
    """What is launched and ended, by pool; of a set of one the rest beside it, of more by pool."""
    plans = {}
    for name, share in shares.items():
        assert share.decision is not None
        plans[name] = {
            "end": list(share.decision.end),
            "drain": list(share.decision.drain),
            "reasons": [reason.sentence for reason in share.decision.reasons],
            "staged": share.snapshot.staged,
            "pending": share.snapshot.pending,
            "active": share.snapshot.active,
        }
    launch = {name: share.decision.launch for name, share in shares.items() if share.decision}
    document: dict[str, Any] = {"launch": launch}
    if len(plans) == 1 and not errors:
        return document | next(iter(plans.values()))
    return document | {
        "pools": plans,
        "errors": {name: str(error) for name, error in errors.items()},
    }


def dry_run(pool: Pool) -> int:
    """Print what one launch would submit. Asks nobody anything."""
    for preview in _previews(pool, pool.backend(), 1, 1):
        print(preview)
    return 0


def _previews(pool: Pool, backend: Backend, number: int, first: int) -> list[str]:
    """What launching so many workers would submit, each text once; or why it would be refused."""
    from backends.base import LaunchKey, Preview
    from bundles.home import TOKEN_VARIABLE

    if not number:
        return []
    keys = LaunchKey.make_row(pool.name, first, number)
    # Only the name is shown of a secret: there is no need to ask the server for one.
    requests = pool.launcher().requests(keys, backend, {TOKEN_VARIABLE: "…"})
    texts: dict[str, None] = {}
    for result in backend.launch(requests, dry_run=True):
        texts[result.text if isinstance(result, Preview) else f"nothing: {result}"] = None
    return list(texts)
