"""Runs on disk: one directory each, with a small JSON file that says where the run is.

    <key>/run.json   the run (worker.stages.Run), replaced whole by a rename
    <key>/files      the run's own directory: what it writes is what is uploaded
    <key>/tmp        its TMPDIR
    <key>/exit       how its command ended, written by the process that waits for it

Nothing is fsynced: when a process dies, by SIGKILL too, what it wrote is in the kernel's hands
and stays. Only when the machine itself goes down may a file be torn or missing, and then the
processes are gone as well: such a run is not reported, so that the server stages it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from bundles.model import Resources
from worker.stages import Fate, Run, Stage

VERSION = 1


class TornRecord(Exception):
    """The file of a run cannot be read, so nobody knows what it was about."""


def save(runs: Path, run: Run) -> None:
    """Write the run, whole or not at all. Raises OSError (a full disk)."""
    place = f"{runs}/{run.key}"
    temporary = f"{place}/run.json.new"
    content = orjson.dumps(_to_document(run))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(place, mode=0o700)
        descriptor = os.open(temporary, flags, 0o600)
    try:
        # A short write means that the disk is full; the next one says so.
        written = 0
        while written < len(content):
            written += os.write(descriptor, content[written:])
    finally:
        os.close(descriptor)
    os.rename(temporary, f"{place}/run.json")


def load(place: Path) -> Run:
    """The run of a directory. Raises TornRecord."""
    try:
        document = orjson.loads((place / "run.json").read_bytes())
        run = _from_document(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornRecord(f"{place} holds no readable run: {error}") from error
    if run.key != place.name:
        raise TornRecord(f"{place} holds the run {run.key}")
    return run


def dependency_keys(bundle: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(parent_uuid, parent_path) of every dependency of a `run` message's bundle."""
    return [
        (str(dependency["parent_uuid"]), str(dependency.get("parent_path") or ""))
        for dependency in bundle.get("dependencies") or ()
    ]


def _to_document(run: Run) -> dict[str, Any]:
    return {
        "version": VERSION,
        "uuid": run.uuid,
        "claim": run.claim,
        "bundle": run.bundle,
        "resources": run.resources.to_run_message(),
        "accepted": run.accepted,
        "stage": run.stage,
        "fate": run.fate,
        "failure_message": run.failure_message,
        "exitcode": run.exitcode,
        "stopping": run.stopping,
        "process": run.process,
        "cpus": run.cpus,
        "gpus": run.gpus,
        "times": run.times,
        "seconds": run.seconds,
    }


def _from_document(document: dict[str, Any]) -> Run:
    if document["version"] != VERSION:
        raise ValueError(f"it is of version {document['version']}")
    total, user, system = document["seconds"]
    return Run(
        uuid=document["uuid"],
        claim=document["claim"],
        bundle=dict(document["bundle"]),
        resources=Resources.from_run_message(document["resources"]),
        accepted=float(document["accepted"]),
        stage=Stage(document["stage"]),
        fate=Fate(document["fate"]),
        failure_message=document["failure_message"],
        exitcode=document["exitcode"],
        stopping=bool(document["stopping"]),
        process=document["process"],
        cpus=tuple(document["cpus"]),
        gpus=tuple(document["gpus"]),
        times={name: (start, end) for name, (start, end) in document["times"].items()},
        seconds=(total, user, system),
    )
