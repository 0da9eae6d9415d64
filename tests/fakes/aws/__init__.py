"""AWS on a loopback port: Batch as documented, which runs jobs as processes, and moto for the rest.

Validated by what we did not write: every request and answer of Batch against botocore's own model.
"""

from __future__ import annotations
