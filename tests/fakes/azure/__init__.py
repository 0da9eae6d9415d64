"""Azure Batch and Azure Storage on loopback, written from their published APIs, for our tests."""

from __future__ import annotations
