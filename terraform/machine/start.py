"""start.py OWNER BACKEND OPTION…: becomes the manager, with its credentials and its mark.

The mark of our jobs is in the home's file `owner`; a new home gets the one that Terraform knows, so
that a manager whose home was lost finds its jobs again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from credentials import credentials


def main(owner: str, *arguments: str) -> None:
    os.umask(0o077)
    mark = Path(os.environ["WORKER_MANAGER_HOME"], "owner")
    if not mark.exists():
        new = mark.with_suffix(".new")
        new.write_text(owner + "\n")
        new.rename(mark)
    os.environ.update(credentials())
    os.execvp("worker-manager", ["worker-manager", *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
