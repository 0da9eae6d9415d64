"""`python -m bundles`: the command `bundles`."""

from __future__ import annotations

from bundles.cli import main

if __name__ == "__main__":
    main()
