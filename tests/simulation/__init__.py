"""The whole manager on a simulated clock, over a server and compute services that fail at will.

What is real: the loop, the decision, the ledger (SQLite), health, money. What is simulated: time,
the server with its workers and bundles, the compute services. One *schedule* is a random history
of faults, kills and changes of configuration, which ends in calm: then everything must come right.
"""

from __future__ import annotations
