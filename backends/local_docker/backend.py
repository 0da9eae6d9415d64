"""Launches, lists and ends workers as containers of one engine (see backends.base.Backend).

A job is a container named after its launch key, and a directory of the same name on this machine:

    script    what the container runs: the worker, again if it is killed
    secrets   the worker's secrets, mode 0600, until it has ended
    ending    when the job was asked to end, in seconds since the epoch
    swept     there once nothing is left of a worker that did not leave in good order
    work/     the worker's files, unless the user wants them elsewhere
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from docker.errors import APIError

from backends.base import (
    KEY,
    BackendError,
    Capabilities,
    Context,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    OutOfCapacity,
    Preview,
    Throttled,
    Unauthorized,
    Unreachable,
)
from backends.local_docker.definition import (
    SCRIPT,
    Place,
    definition,
    labels,
    secrets_text,
)
from backends.local_docker.engine import CALL_SECONDS, Engine
from backends.local_docker.jobs import inspected_job, key_of, listed_job
from backends.local_docker.options import Settings

GRACE_SECONDS = 30.0
"""A job that was asked to end this long ago, and is asked again, is killed."""
ENDED_KEPT_SECONDS = 24 * 3600.0
ENDED_KEPT = 50
"""How many ended jobs are kept at most, and how long: with their logs, for `status` and people."""
LOG_KEPT_BYTES = 1024**2

RUN_WORKER_LABEL = "worker-manager.worker"
"""What a worker's own containers and networks carry, with its id: documented of the worker."""

_FOR_ALL = (Unreachable, Unauthorized, Throttled)
"""What concerns the engine and not one request: the others of the call are not asked."""


class LocalDocker:
    """The jobs of one pool on the engine of this machine."""

    def __init__(
        self,
        context: Context,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        call_seconds: int = CALL_SECONDS,
    ) -> None:
        self._context = context
        self._settings = settings
        self._clock = clock
        self._engine = Engine(context.environment, call_seconds)
        self._ends: dict[LaunchKey, Job] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            launches_per_call=1,
            idempotency=Idempotency.SERVICE,
            ended_listed_seconds=ENDED_KEPT_SECONDS,
            worker_runtime=self._settings.runtime,
        )

    @property
    def account(self) -> str | None:
        return self._engine.address

    @property
    def work_directory(self) -> str:
        return str(self._work(KEY))

    def _work(self, key: str) -> Path:
        prefix = self._context.work_directory_prefix
        if prefix:
            return Path(prefix).expanduser().absolute() / key
        return self._context.directory.absolute() / key / "work"

    def _place(self, key: LaunchKey) -> Place:
        return Place(self._context.directory.absolute() / str(key), self._work(str(key)))

    # Check

    def check(self) -> list[Finding]:
        engine = self._engine.address
        try:
            about = self._engine.ask(f"asking the engine at {engine}", lambda c: c.info())
        except BackendError as error:
            remedy = "start it, or say in DOCKER_HOST where it is"
            if isinstance(error, Unauthorized):
                remedy = "have this user let in, or say in DOCKER_HOST where another engine is"
            return [Finding("DOCKER_HOST", str(error), error, remedy)]
        version = about.get("ServerVersion")
        return [
            Finding("DOCKER_HOST", f"engine {version} answers at {engine}"),
            self._check_image(),
            self._check_network(),
            self._check_cpus(int(about.get("NCPU") or 0)),
            self._check_socket(),
            self._check_home(),
        ]

    def _check_image(self) -> Finding:
        image = self._settings.image
        return self._find(
            "--image",
            f"the engine has {image}",
            lambda c: c.inspect_image(image),
            f"docker pull {image}, or give another",
        )

    def _check_network(self) -> Finding:
        name = self._settings.network
        return self._find(
            "--network",
            f"the engine has the network {name}",
            lambda c: c.inspect_network(name),
            "give one of those that `docker network ls` shows",
        )

    def _find(
        self, subject: str, sentence: str, call: Callable[[Any], object], remedy: str
    ) -> Finding:
        try:
            self._engine.ask(f"looking for {subject}", call)
        except BackendError as error:
            return Finding(subject, str(error), error, remedy)
        return Finding(subject, sentence)

    def _check_cpus(self, available: int) -> Finding:
        asked = self._settings.cpus
        if available and asked > available:
            error = Invalid(f"{asked} of one worker, and the engine's machine has {available}")
            return Finding("--cpus", str(error), error, f"give at most {available}")
        return Finding("--cpus", f"the engine's machine has {available}")

    def _check_socket(self) -> Finding:
        socket = self._engine.socket
        if self._settings.runtime == "process":
            return Finding("--runtime", "bundles run as processes inside the workers' containers")
        if socket is not None:
            return Finding("--runtime", f"bundles run in containers of the engine at {socket}")
        error = Invalid(f"the engine at {self._engine.address} has no socket that can be mounted")
        return Finding("--runtime", str(error), error, "give --runtime process")

    def _check_home(self) -> Finding:
        place = self._context.directory.absolute()
        while not place.exists():
            place = place.parent
        if os.access(place, os.W_OK | os.X_OK):
            return Finding("the home", f"jobs can be kept in {self._context.directory}")
        error = Unauthorized(f"{place} cannot be written to")
        return Finding("the home", str(error), error, "give another with --home")

    # Launch

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        results: list[LaunchResult] = []
        refusal: BackendError | None = None
        for request in requests:
            try:
                if request.key.pool != self._context.pool:
                    raise Invalid(f"{request.key} is not a key of the pool {self._context.pool}")
                if dry_run:
                    results.append(self._preview(request))
                elif refusal is not None:
                    results.append(refusal)
                else:
                    results.append(self._launch(request))
            except BackendError as error:
                results.append(error)
                if isinstance(error, _FOR_ALL):
                    refusal = error
        if requests and refusal is None and not dry_run:
            # Room is made where it is used up, so that a list never changes anything.
            with suppress(OSError, BackendError):
                self._tidy()
        return results

    def _definition(self, request: LaunchRequest) -> dict[str, Any]:
        return definition(
            request,
            self._place(request.key),
            self._context,
            self._settings,
            self._engine.socket,
        )

    def _preview(self, request: LaunchRequest) -> Preview:
        body = json.dumps(self._definition(request), indent=2)
        return Preview(f"POST /containers/create?name={request.key}\n{body}")

    def _launch(self, request: LaunchRequest) -> Job:
        place = self._place(request.key)
        doing = f"launching {request.key}"
        try:
            _prepare(place, request.secrets)
        except OSError as error:
            raise _refused_by_system(error, doing) from error
        body = self._definition(request)
        try:
            is_new = self._engine.ask(doing, lambda c: _create(c, body, str(request.key)))
        except BackendError as error:
            if not isinstance(error, Unreachable):
                _remove(place)
            raise
        if is_new:
            return self._start(request.key, place)
        document = self._inspect(str(request.key), doing)
        if document is None:
            raise Unreachable(f"{doing}: its container is gone: who removes it?")
        if key_of((document.get("Config") or {}).get("Labels"), self._context) != request.key:
            _remove(place)
            raise Invalid(f"{doing}: a container of that name is somebody else's")
        if (document.get("State") or {}).get("Status") != "created":
            return self._inspected(document, request.key)
        return self._start(request.key, place)

    def _start(self, key: LaunchKey, place: Place) -> Job:
        doing = f"starting {key}"
        try:
            self._engine.ask(doing, lambda c: c.start(str(key)))
        except Unreachable:
            raise
        except BackendError:
            # The engine keeps a container that it could not start.
            self._engine.ask(doing, lambda c: c.remove_container(str(key), force=True))
            _remove(place)
            raise
        now = self._clock()
        return Job(str(key), key, str(key), JobState.ACTIVE, created=now, started=now)

    # List

    def list_jobs(self) -> list[Job]:
        jobs = []
        for entry in self._containers(labels(self._context)):
            key = key_of(entry.get("Labels"), self._context)
            if key is not None:
                jobs.append(listed_job(entry, key, self._clock()))
        return self._with_ends(jobs)

    def _containers(self, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        filters = {"label": [f"{name}={value}" for name, value in wanted.items()]}
        return self._engine.ask(
            "listing containers", lambda c: list(c.containers(all=True, filters=filters))
        )

    def _with_ends(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, with when and why the ended ones ended: asked once for each, and of so many at
        most at a time; the others are listed with their exit code."""
        known = {}
        asked = 0
        whole = []
        for job in jobs:
            assert job.key is not None
            if job.state is not JobState.ENDED or job.cause is not None:
                whole.append(job)
                continue
            found = self._ends.get(job.key)
            if found is None and asked < ENDED_KEPT:
                asked += 1
                document = self._inspect(job.id, f"looking at {job.id}")
                if document is None:
                    continue  # removed since it was listed
                found = self._inspected(document, job.key)
            if found is not None and found.state is JobState.ENDED:
                known[job.key] = found
            whole.append(found or job)
        self._ends = known
        return whole

    def _inspect(self, name: str, doing: str) -> dict[str, Any] | None:
        """What the engine says of a container; None when there is none of that name."""
        return self._engine.ask(doing, lambda c: _inspect(c, name))

    def _inspected(self, document: Mapping[str, Any], key: LaunchKey) -> Job:
        was_asked = self._place(key).ending.exists()
        return inspected_job(document, key, self._clock(), was_asked=was_asked)

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        refusal: BackendError | None = None
        for job_id in job_ids:
            if refusal is not None:
                results[job_id] = refusal
                continue
            try:
                self._terminate(job_id)
                results[job_id] = None
            except BackendError as error:
                results[job_id] = error
                if isinstance(error, _FOR_ALL):
                    refusal = error
        return results

    def _terminate(self, job_id: str) -> None:
        doing = f"ending {job_id}"
        found = self._ours(job_id, doing)
        if found is None:
            return
        document, key = found
        status = (document.get("State") or {}).get("Status")
        if status == "created":
            self._engine.ask(doing, lambda c: c.remove_container(job_id, force=True))
            return
        if status not in ("running", "paused", "restarting"):
            return
        try:
            number = "SIGKILL" if self._was_asked_long_ago(self._place(key)) else "SIGTERM"
        except OSError as error:
            raise _refused_by_system(error, doing) from error
        self._engine.ask(doing, lambda c: _signal(c, job_id, number))

    def _was_asked_long_ago(self, place: Place) -> bool:
        """Notes that it is asked, if it was not before."""
        try:
            return self._clock() - float(place.ending.read_text()) >= GRACE_SECONDS
        except (FileNotFoundError, ValueError):
            place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.ending.write_text(str(self._clock()))
            return False

    def _ours(self, job_id: str, doing: str) -> tuple[dict[str, Any], LaunchKey] | None:
        """A container of ours; None when there is none. Raises Invalid when it is another's."""
        document = self._inspect(job_id, doing)
        if document is None:
            return None
        key = key_of((document.get("Config") or {}).get("Labels"), self._context)
        if key is None or str(key) != job_id:
            raise Invalid(f"{job_id} is not a job of the pool {self._context.pool}")
        return document, key

    # Logs

    def logs(self, job_id: str) -> str:
        doing = f"reading the log of {job_id}"
        if self._ours(job_id, doing) is None:
            raise Invalid(f"there is no job {job_id}")
        said: bytes = self._engine.ask(doing, lambda c: c.logs(job_id))
        return said[-LOG_KEPT_BYTES:].decode(errors="replace")

    # What has ended

    def _tidy(self) -> None:
        """Forget old ended jobs, and directories of containers that others removed."""
        jobs = self.list_jobs()
        ended = [job for job in jobs if job.state is JobState.ENDED]
        ended.sort(key=lambda job: job.ended or 0.0, reverse=True)
        oldest = self._clock() - ENDED_KEPT_SECONDS
        for number, job in enumerate(ended):
            assert job.key is not None
            place = self._place(job.key)
            place.secrets.unlink(missing_ok=True)
            self._sweep(job, place)
            if number >= ENDED_KEPT or (job.ended or 0.0) < oldest:
                self._remove_container(job.id)
                _remove(place)
        kept = {job.id for job in jobs}
        for directory in self._context.directory.iterdir():
            key = LaunchKey.parse(directory.name)
            if key is not None and key.pool == self._context.pool and directory.name not in kept:
                _remove(self._place(key))

    def remove_all(self) -> None:
        """Leave no container of the pool, living or ended, and no file: for a home that goes."""
        for job in self.list_jobs():
            assert job.key is not None
            self._remove_container(job.id)
            _remove(self._place(job.key))

    def _sweep(self, job: Job, place: Place) -> None:
        """Remove the containers of bundles that a worker left which did not end in good order."""
        if self._settings.runtime != "docker" or job.exit_code == 0 or place.swept.exists():
            return
        mine = {"label": [f"{RUN_WORKER_LABEL}={job.worker_id}"]}
        for entry in self._containers({RUN_WORKER_LABEL: job.worker_id}):
            self._remove_container(entry["Id"])
        self._engine.ask("tidying", lambda c: _remove_networks(c, mine))
        place.directory.mkdir(mode=0o700, exist_ok=True)
        place.swept.touch()

    def _remove_container(self, name: str) -> None:
        self._engine.ask("tidying", lambda c: _remove_container(c, name))


def _create(client: Any, body: Mapping[str, Any], name: str) -> bool:
    """False when there is one of that name already."""
    try:
        client.create_container_from_config(dict(body), name)
    except APIError as error:
        if error.status_code != 409:
            raise
        return False
    return True


def _inspect(client: Any, name: str) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = client.inspect_container(name)
    except APIError as error:
        if error.status_code == 404:
            return None
        raise
    return document


def _signal(client: Any, name: str, number: str) -> None:
    """409: it does not run any more; 404: it is gone."""
    try:
        client.kill(name, number)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise


def _remove_container(client: Any, name: str) -> None:
    """404: it is gone; 409: somebody else is removing it."""
    try:
        client.remove_container(name, force=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise


def _remove_networks(client: Any, filters: Mapping[str, Any]) -> None:
    for network in client.networks(filters=filters):
        client.remove_network(network["Id"])


def _prepare(place: Place, secrets: Mapping[str, str]) -> None:
    place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    _put(place.script, SCRIPT)
    if secrets:
        _put(place.secrets, secrets_text(secrets))


def _put(path: Path, text: str) -> None:
    """A new file, readable by nobody else, in the place of one that a shell may be reading."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _remove(place: Place) -> None:
    for path in place.mounted:
        shutil.rmtree(path, ignore_errors=True)


def _refused_by_system(error: OSError, doing: str) -> BackendError:
    sentence = f"{doing} failed: {error.strerror or error} ({error.filename})"
    if isinstance(error, PermissionError):
        return Unauthorized(sentence)
    return OutOfCapacity(sentence)
