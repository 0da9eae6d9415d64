"""What is right and wrong with a configuration: one question after the other, changing nothing."""

from __future__ import annotations

from collections.abc import Iterator

from backends.base import BackendError, Context, Finding, Unauthorized
from backends.gcp_batch.mark import labels
from backends.gcp_batch.options import GcpSettings
from backends.gcp_batch.service import Service
from backends.gcp_batch.vault import Vault


def findings(
    context: Context, settings: GcpSettings, service: Service, vault: Vault
) -> Iterator[Finding]:
    try:
        service.jobs(labels(context), limit=1)
    except BackendError as error:
        if isinstance(error, Unauthorized):
            remedy = (
                "log in (gcloud auth application-default login) as who has roles/batch.jobsEditor "
                f"in {settings.project}, and have batch.googleapis.com enabled there"
            )
        else:
            remedy = f"is there a project {settings.project}, and GCP Batch in {settings.region}?"
        yield Finding("--project", str(error), error, remedy)
        return
    yield Finding("--project", f"jobs of {settings.parent} can be listed")
    if vault.refusal is not None:
        yield Finding("--secret", str(vault.refusal), vault.refusal, "gcloud secrets create NAME")
        return
    try:
        vault.check()
    except BackendError as error:
        remedy = (
            "make it (gcloud secrets create), and give us roles/secretmanager.secretVersionManager "
            "on it, and the machines' service account roles/secretmanager.secretAccessor"
        )
        yield Finding("--secret", str(error), error, remedy)
    else:
        yield Finding("--secret", f"workers read their credentials from {settings.secret}")
    if settings.workers_per_job > 1:
        yield Finding(
            "--workers-per-job",
            f"up to {settings.workers_per_job} workers are one job, and are ended together only",
        )
