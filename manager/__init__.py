"""Decides how many workers each pool should have, and keeps its word.

observe (I/O) → Snapshot → decide (pure) → Decision → act (I/O), once a tick.
"""

from __future__ import annotations
