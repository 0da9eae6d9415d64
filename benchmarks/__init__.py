"""What docs/performance.md claims, measured: `python -m benchmarks [NAME…]`."""

from __future__ import annotations
