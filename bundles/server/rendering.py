"""Bundles, users and transitions as JSON documents, under CodaLab's names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

import bundles
from bundles.model import ASSIGNED_STATES, FINAL_STATES, Dependency, State
from bundles.server.accounts import User

_DETAILS = {
    State.UPLOADING: "Waiting for its contents.",
    State.CREATED: "Waiting for the bundles that it depends on.",
    State.STAGED: "Waiting for a worker.",
    State.STARTING: "Given to a worker.",
    State.WORKER_OFFLINE: "Its worker is not heard of.",
}


def bundle_document(
    row: Mapping[str, Any],
    dependencies: Sequence[Dependency],
    parent_states: Mapping[str, str],
    live: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A bundle; ``live``: its latest figures if it runs; ``parent_states`` by uuid."""
    state = State(row["state"])
    metadata = orjson.loads(row["metadata"])
    if live and state in ASSIGNED_STATES:
        metadata |= live
    if row["staged_status"]:
        metadata["staged_status"] = row["staged_status"]
    details = metadata.get("run_status") if state in ASSIGNED_STATES else None
    lost_with = metadata.get("lost_with")
    if lost_with and state is State.STAGED and not row["staged_status"]:
        times = "once" if len(lost_with) == 1 else f"{len(lost_with)} times"
        details = f"Waiting for a worker. Lost {times} with the one that ran it."
    return {
        "type": "bundles",
        "id": row["uuid"],
        "attributes": {
            "uuid": row["uuid"],
            "id": row["id"],
            "bundle_type": row["bundle_type"],
            "command": row["command"] or None,
            "state": state,
            "state_details": details or row["staged_status"] or _DETAILS.get(state, ""),
            "frozen": None,
            "is_anonymous": False,
            "storage_type": "disk",
            "is_dir": row["is_directory"],
            "metadata": metadata,
            "dependencies": [
                {
                    **dependency.to_document(),
                    "parent_state": parent_states.get(dependency.parent_uuid),
                }
                for dependency in dependencies
            ],
            "args": row["args"],
            "permission": 2,
            "permission_spec": "all",
            "claim": row["claim"],
            "worker_id": row["worker_id"] if state not in FINAL_STATES else None,
        },
        "relationships": {"owner": {"data": {"type": "users", "id": row["owner_id"]}}},
    }


def user_document(user: User, **more: Any) -> dict[str, Any]:
    """A user, without the password."""
    return {
        "type": "users",
        "id": user.id,
        "attributes": {
            "user_name": user.name,
            "is_root_user": user.is_root,
            "date_joined": user.created,
            **more,
        },
    }


def transition_document(transition: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the change feed."""
    return {
        "id": transition["id"],
        "uuid": transition["uuid"],
        "from": transition["from_state"],
        "to": transition["to_state"],
        "time": transition["time"],
        "claim": transition["claim"],
        "worker": transition["worker_id"],
        "reason": transition["reason"],
    }


def document(data: Any, *, included: Iterable[Any] | None = None, **meta: Any) -> dict[str, Any]:
    """The outermost object of every reply that is not CodaLab's bare JSON."""
    whole: dict[str, Any] = {"data": data, "meta": {"version": bundles.__version__, **meta}}
    if included is not None:
        whole["included"] = list(included)
    return whole
