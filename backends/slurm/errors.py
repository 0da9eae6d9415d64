"""What Slurm's commands say when they fail, as errors of the taxonomy. Pure.

The commands tell errors apart by their sentences alone (slurm_errno.c of Slurm 20 to 25): exit
codes do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from backends.base import (
    BackendError,
    Invalid,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)

_PREFIX = re.compile(
    r"^(?:slurm_\w+|sbatch|squeue|scancel|scontrol|sacct|allocation failure)"
    r"(?: error)?:\s*(?:(?:error|fatal):\s*)?"
)
_SUBMISSION = "Batch job submission failed: "
_REFUSAL = re.compile(rf"(?:{_SUBMISSION}|^allocation failure: )(.*)")
MOST_SENTENCES = 4
"""Of those that a cluster's own rules may add to a refusal."""

NEVER_ASKED = ("connect failure", "Unable to establish config")
"""With these the controller has not heard what was asked."""

_TABLE: tuple[tuple[str, type[BackendError], str], ...] = (
    # What is said, what it means, what to look at.
    ("rate limit", Throttled, ""),
    ("RPC limit", Throttled, ""),
    ("temporarily unable to accept job", QuotaExceeded, "the cluster holds all the jobs it may"),
    ("Resource temporarily unavailable", QuotaExceeded, "the cluster holds all the jobs it may"),
    ("Job violates accounting/QOS policy", QuotaExceeded, "see --account, --qos and `sacctmgr`"),
    ("QOSMaxSubmitJob", QuotaExceeded, "see --qos"),
    ("AssocMaxSubmitJob", QuotaExceeded, "see --account"),
    ("Disk quota exceeded", QuotaExceeded, ""),
    ("invalid partition specified", Invalid, "see --partition and `sinfo`"),
    ("Invalid partition name specified", Invalid, "see --partition and `sinfo`"),
    ("Invalid account", Invalid, "see --account, --partition and `sacctmgr show assoc`"),
    ("Invalid qos", Invalid, "see --qos"),
    ("Invalid feature specification", Invalid, "see --constraint and `sinfo -o %f`"),
    ("Invalid node name specified", Invalid, "see --nodelist and --exclude"),
    ("Invalid generic resource", Invalid, "see --gpus, --gpu-type and `sinfo -o %G`"),
    ("Invalid --time specification", Invalid, "see --time"),
    ("Requested time limit is invalid", Invalid, "see --time"),
    ("Memory specification can not be satisfied", Invalid, "see --memory-mb"),
    ("Requested node configuration is not available", Invalid,
     "no node of the partition has so much: see --cpus, --memory-mb, --gpus and --nodelist"),
    ("Node count specification invalid", Invalid, "see --nodelist"),
    ("Invalid job array specification", Invalid,
     "the cluster has no job arrays, or shorter ones: see MaxArraySize in `scontrol show config`"),
    ("Invalid job id", Invalid, ""),
    ("not found", Invalid, "see --partition and `sinfo`"),
    ("not permitted to use this partition", Unauthorized, "see --partition"),
    ("Access/permission denied", Unauthorized, ""),
    ("Invalid user", Unauthorized, ""),
    ("authentication", Unauthorized, "is munged running here?"),
    ("Invalid authentication credential", Unauthorized, "is munged running here?"),
    ("munge", Unauthorized, "is munged running here?"),
    ("Required partition not available", OutOfCapacity, ""),
    ("Required node not available", OutOfCapacity, ""),
    ("Requested nodes are busy", OutOfCapacity, ""),
    ("Unable to contact slurm controller", Unreachable, "is slurmctld running?"),
    ("Socket timed out", Unreachable, ""),
    ("Zero Bytes were transmitted", Unreachable, ""),
    ("Unexpected message received", Unreachable, ""),
    ("Message receive failure", Unreachable, ""),
    ("Message send failure", Unreachable, ""),
    ("Communication ", Unreachable, ""),
    ("Header lengths are longer", Unreachable, ""),
    ("Transport endpoint", Unreachable, ""),
    ("Connection reset", Unreachable, ""),
    ("Broken pipe", Unreachable, ""),
    ("Connection refused", Unreachable, ""),
    ("Connection timed out", Unreachable, ""),
    ("in standby mode", Unreachable, ""),
    ("establish a configuration source", Invalid, "set SLURM_CONF to the cluster's slurm.conf"),
    ("Unable to process configuration file", Invalid, "see SLURM_CONF"),
    ("Failure to communicate with slurmdbd", Unreachable, "is slurmdbd running?"),
)  # fmt: skip


def slurm_error(doing: str, said: str) -> BackendError:
    """The error that a failed command's stderr stands for; ``doing`` begins its sentence.

    Of a refused submission the controller's own sentence decides, and those before it, which may
    be of the cluster's own rules, are told with it. One that is not in the table is Invalid, since
    no job came of it; anything else that is not is Unreachable.
    """
    found = _sentences(said)
    refusals = [m[1] for line in said.splitlines() if (m := _REFUSAL.search(line))]
    if not refusals:
        told = found[-1] if found else "it said nothing"
        row = _row(found)
        if row is None:
            return Unreachable(_whole(doing, told, ""))
        told, kind, hint = row
    else:
        decisive = _row(refusals)
        kind = decisive[1] if decisive else Invalid
        _, _, hint = _row(found, kind) or ("", kind, "")
        told = last_sentences(said)
    return kind(_whole(doing, told, hint))


def _row(
    found: Sequence[str], kind: type[BackendError] | None = None
) -> tuple[str, type[BackendError], str] | None:
    """The first row of the table, of that kind, that is among sentences, and the sentence."""
    for fragment, means, hint in _TABLE:
        for sentence in found:
            if kind in (None, means) and fragment.lower() in sentence.lower():
                return sentence, means, hint
    return None


def last_sentences(said: str) -> str:
    """The end of a command's stderr, in one line."""
    return " / ".join(_sentences(said)[-MOST_SENTENCES:])


def _sentences(said: str) -> list[str]:
    """Without who says them."""
    stripped = (_PREFIX.sub("", line.strip()) for line in said.splitlines() if line.strip())
    return [sentence.removeprefix(_SUBMISSION) for sentence in stripped]


def was_never_asked(said: str) -> bool:
    """Whether the controller cannot have heard of what was asked."""
    return any(fragment in said for fragment in NEVER_ASKED)


def _whole(doing: str, sentence: str, hint: str) -> str:
    told = f"{doing}: Slurm says {sentence!r}"
    return f"{told}; {hint}" if hint else told
