"""One module a kind of request: what it takes, whom it asks, what it answers."""

from __future__ import annotations
