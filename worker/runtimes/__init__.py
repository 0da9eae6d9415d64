"""The ways to run a bundle's command, behind the one interface of `worker.runtimes.base`."""

from __future__ import annotations
