"""`worker-manager demo`: the main job on this machine, with nothing pretended.

A server, a manager and its workers as processes of their own, over a temporary home that is gone
afterwards. Nothing here is used by the manager itself.
"""

from __future__ import annotations
