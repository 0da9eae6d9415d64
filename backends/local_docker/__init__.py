"""Workers as containers of this machine's Docker engine, which outlive the manager.

Imports no SDK before `create` is called.
"""

from __future__ import annotations

from backends.local_docker.options import create, options

__all__ = ["create", "options"]
