"""Whether a pool can be kept at all: its backend's own findings, said before the first launch."""

from __future__ import annotations

import logging

from backends.base import Backend, Invalid, Unauthorized
from manager.log_format import complain

log = logging.getLogger("manager")


def is_usable(backend: Backend) -> bool:
    """Whether a launch can work at all. Says a line for each thing that is wrong: what no waiting
    would mend as an error, the rest as a warning."""
    usable = True
    for finding in backend.check():
        if finding.error is None:
            continue
        line = f"{finding.subject}: {finding.sentence}"
        line += f": {finding.remedy}" if finding.remedy else ""
        if isinstance(finding.error, Invalid | Unauthorized):
            usable = False
            complain(line)
        else:
            log.warning("%s", line)
    return usable
