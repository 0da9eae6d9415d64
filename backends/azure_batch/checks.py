"""What is right and wrong with a configuration: one question after the other, changing nothing."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from backends.azure_batch.options import AzureSettings
from backends.azure_batch.place import look
from backends.azure_batch.pools import PoolNews
from backends.azure_batch.service import Service
from backends.azure_batch.storage import Storage
from backends.base import BackendError, Finding, Invalid, OutOfCapacity, Unauthorized

_BROKEN = frozenset({"start_task_failed", "startTaskFailed", "unusable", "offline", "unknown"})


def findings(settings: AzureSettings, service: Service, storage: Storage) -> Iterator[Finding]:
    try:
        place = look(service, settings)
    except BackendError as error:
        remedy = (
            "give the account's key (AZURE_BATCH_ACCESS_KEY), or log in as who may use the account"
            if isinstance(error, Unauthorized)
            else "is the URL that of the account, and can it be reached from here?"
        )
        yield Finding("--service-url", str(error), error, remedy)
        return
    yield Finding("--service-url", f"{settings.service_url} takes our credentials")
    if place.error is not None:
        subject, _, _ = str(place.error).partition(" ")
        subject = subject if subject.startswith("--") else "--pool-id"
        yield Finding(subject, str(place.error), place.error, _REMEDIES[subject])
    else:
        made = "is there" if place.has_job else "will be made"
        yield Finding("--job-id", f"the job {settings.job_id} {made}")
    if place.pool is not None:
        yield from _pool(settings, service, place.pool)
    yield from _containers(settings, storage)


_REMEDIES = {
    "--job-id": "give another --job-id, or enable the job (az batch job enable)",
    "--pool-id": "make the pool (docs/backends/azure-batch.md says how), or give another",
    "--slots": "give fewer, or make a pool with more task slots a node",
}


def _pool(settings: AzureSettings, service: Service, pool: PoolNews) -> Iterator[Finding]:
    if not pool.takes_containers:
        error = Invalid(f"the pool {pool.id} was made without containers, and workers are some")
        yield Finding("--pool-id", str(error), error, "make a pool with a containerConfiguration")
    elif settings.image in pool.images:
        yield Finding("--image", f"the nodes of {pool.id} have {settings.image} from their start")
    else:
        yield Finding("--image", f"each node pulls {settings.image} for its first worker")
    try:
        states = service.node_states(pool.id)
    except Unauthorized as refusal:
        # Who may submit need not be allowed to count: not being told is no fault.
        sentence = f"the nodes of {pool.id} could not be counted, which is no fault: {refusal}"
        yield Finding("--pool-id", sentence)
    except BackendError as failure:
        yield Finding("--pool-id", str(failure), failure, "see the service's answer")
    else:
        told = ", ".join(f"{number} {name}" for name, number in sorted(states.items()))
        sentence = f"the pool {pool.id} has {told or 'no'} nodes, and wants {pool.wanted}"
        broken = sum(number for name, number in states.items() if name in _BROKEN)
        if broken and broken == sum(states.values()):
            none = OutOfCapacity(f"{sentence}: none of them can run a worker")
            remedy = "see what they say: az batch node list --pool-id " + pool.id
            yield Finding("--pool-id", str(none), none, remedy)
        else:
            yield Finding("--pool-id", sentence)
    if settings.identity and settings.identity.lower() not in map(str.lower, pool.identities):
        error = Invalid(f"the pool {pool.id} has no identity {settings.identity}")
        yield Finding("--identity", str(error), error, "give one that the pool was made with")


def _containers(settings: AzureSettings, storage: Storage) -> Iterator[Finding]:
    subject = "--secrets-container-url"
    try:
        storage.check()
    except BackendError as error:
        yield Finding(
            subject, str(error), error, "give a container that AZURE_STORAGE_KEY or we may write to"
        )
    else:
        how = "the pool's identity" if settings.identity else "a signature of 24 hours for each"
        yield Finding(subject, f"workers read their credentials there by {how}")
    if settings.log_container_url and urlsplit(settings.log_container_url).query:
        yield Finding(
            "--log-container-url",
            "its signature is in every task: whoever reads tasks may use it until it expires",
        )
