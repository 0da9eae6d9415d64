"""What every worker job runs: fetch, prepare, run, upload, clean up.

A worker knows a server, a directory and its limits. It knows nothing of the manager, nor of the
service that its job runs on.
"""

from __future__ import annotations
