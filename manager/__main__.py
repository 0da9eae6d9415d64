"""`python -m manager` is `worker-manager`."""

from __future__ import annotations

import sys

from manager.cli import main

if __name__ == "__main__":
    sys.exit(main())
