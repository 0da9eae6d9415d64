"""GCP Batch, Secret Manager and Cloud Logging on loopback, written from the published API."""

from __future__ import annotations
