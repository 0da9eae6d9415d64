"""`python -m worker` is the command `bundle-worker`."""

from __future__ import annotations

from worker.cli import main

main()
