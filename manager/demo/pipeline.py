"""The demo's bundles: what is queued, what is expected of it, and how it is going."""

from __future__ import annotations

import shlex
import shutil
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles.model import FINAL_STATES, State, new_uuid
from manager.demo import counting

if TYPE_CHECKING:
    from bundles.client import Client

SHARDS = 16
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
)
"""Of the library's directory: what is not the library itself."""

SOURCE, MERGE, FAILS, AFTER = "library", "merge", "fails", "after-fails"


def shard_name(number: int) -> str:
    return f"count-{number:02}"


EXPECTED: Mapping[str, str] = {
    SOURCE: State.READY,
    **{shard_name(number): State.READY for number in range(SHARDS)},
    MERGE: State.READY,
    FAILS: State.FAILED,
    AFTER: State.FAILED,
}
"""How every bundle, by name, has to end."""


def copy_library(destination: Path) -> None:
    """The `.py` files of this Python's standard library, and the program that counts in them."""
    library = Path(sysconfig.get_path("stdlib"))

    def left_out(directory: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name in _LEFT_OUT or not (name.endswith(".py") or (Path(directory) / name).is_dir())
        ]

    shutil.copytree(library, destination / "python", ignore=left_out)
    shutil.copyfile(counting.__file__, destination / "counting.py")


def direct_count(source: Path) -> Counter[str]:
    """The count that the bundles' must equal, made here without any of them."""
    return counting.count(sorted((source / "python").rglob("*.py")))


@dataclass
class Pipeline:
    """The bundles by name: their uuids, made here, and the states they were last seen in."""

    uuids: dict[str, str] = field(default_factory=lambda: {name: new_uuid() for name in EXPECTED})
    states: dict[str, str] = field(default_factory=lambda: dict.fromkeys(EXPECTED, ""))

    def upload(self, client: Client, source: Path) -> None:
        """Upload the library, as one bundle."""
        from bundles import archive

        client.create(
            [
                {
                    "uuid": self.uuids[SOURCE],
                    "bundle_type": "dataset",
                    "metadata": {"name": SOURCE, "description": "", "tags": []},
                }
            ],
            wait_for_upload=True,
        )
        client.upload(
            self.uuids[SOURCE], archive.pack(source), filename=f"{SOURCE}.tar.gz", finalize=True
        )

    def queue(self, client: Client, *, python: str) -> None:
        """Queue all runs, in one request. ``python``: the interpreter where the workers are."""
        python = shlex.quote(python)
        count = f"{python} {SOURCE}/counting.py count {SOURCE}/python"
        runs = [
            self._run(shard_name(number), f"{count} {number} {SHARDS}", [SOURCE])
            for number in range(SHARDS)
        ]
        shards = [shard_name(number) for number in range(SHARDS)]
        files = " ".join(f"{name}/stdout" for name in shards)
        runs += [
            self._run(MERGE, f"{python} {SOURCE}/counting.py merge {files}", [SOURCE, *shards]),
            self._run(FAILS, "echo 'this one fails on purpose' >&2; exit 3", []),
            self._run(AFTER, f"cat {FAILS}/stderr", [FAILS]),
        ]
        client.create(runs)

    def _run(self, name: str, command: str, parents: Sequence[str]) -> dict[str, Any]:
        return {
            "uuid": self.uuids[name],
            "bundle_type": "run",
            "command": command,
            "dependencies": [
                {"child_path": parent, "parent_uuid": self.uuids[parent], "parent_path": ""}
                for parent in parents
            ],
            "metadata": {
                "name": name,
                "request_cpus": 1,
                "request_memory": "512m",
                "request_time": "10m",
                "request_priority": 0,
            },
        }

    def merged(self, client: Client) -> Counter[str]:
        """What the last run counted."""
        import orjson

        with client.download(self.uuids[MERGE], "stdout") as download:
            return Counter(orjson.loads(b"".join(download.chunks())))

    def see(self, uuid: str, state: str) -> str | None:
        """Note a bundle's state; returns its name when it is one of ours and the state is new."""
        for name, known in self.uuids.items():
            if known == uuid and self.states[name] != state:
                self.states[name] = state
                return name
        return None

    @property
    def ended(self) -> bool:
        return all(state in FINAL_STATES for state in self.states.values())

    def number_in(self, *states: str) -> int:
        return sum(state in states for state in self.states.values())

    def unexpected(self) -> list[str]:
        """A sentence for each bundle that did not end as it should."""
        return [
            f"{name} is {self.states[name] or 'not created'} and should be {state}"
            for name, state in EXPECTED.items()
            if self.states[name] != state
        ]
