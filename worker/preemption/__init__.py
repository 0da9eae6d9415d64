"""Word from the cloud that this machine is about to be taken away, one module a cloud.

What the worker does about it is in worker.departure.
"""

from __future__ import annotations
