"""The queue of work: the model of a bundle, the REST client, the embedded server, the CLI.

Nothing here decides how many workers there are (manager) or runs a bundle (worker).
"""

from __future__ import annotations

__version__ = "0.1.0"
