"""The embedded server: CodaLab's wire protocol and what docs/protocol.md adds to it.

Only `bundles serve` imports this package; everyone else speaks to it over the wire.
"""

from __future__ import annotations
