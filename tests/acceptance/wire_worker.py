"""A worker whose every check-in a test makes by itself, where the order is what matters."""

from __future__ import annotations

import io
import tarfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bundles.client import Client

GIB = 1024**3


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    """The files as an archive, as a worker uploads them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class WireWorker:
    """One session of a worker that speaks docs/protocol.md."""

    def __init__(self, client: Client, worker_id: str = "w", **facts: Any) -> None:
        self.client = client
        self.worker_id = worker_id
        self.session = uuid.uuid4().hex
        self.sequence = 0
        self.facts = facts

    def document(self, **more: Any) -> dict[str, Any]:
        return {
            "tag": None,
            "group_name": None,
            "cpus": 2,
            "gpus": 0,
            "memory_bytes": 16 * GIB,
            "free_disk_bytes": 100 * GIB,
            "dependencies": [],
            "hostname": "wire",
            "runs": [],
            "shared_file_system": False,
            "tag_exclusive": False,
            "exit_after_num_runs": 1000,
            "is_terminating": False,
            "preemptible": False,
            "features": ["batch", "claims"],
            "session": self.session,
            "sequence": self.sequence,
            "acknowledged": [],
            "wait_seconds": 0,
            **self.facts,
            **more,
        }

    def say(
        self,
        *runs: Mapping[str, Any],
        acknowledged: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> list[dict[str, Any]]:
        """One check-in; ``acknowledged``: messages."""
        if "sequence" not in more:
            self.sequence += 1
        more.setdefault("acknowledged", [message["id"] for message in acknowledged])
        return self.client.checkin(self.worker_id, self.document(runs=list(runs), **more))

    def take(self) -> dict[str, Any]:
        """Check in, get one bundle to run, and acknowledge it as preparing."""
        [message] = self.say(wait_seconds=10)
        assert message["type"] == "run"
        assert self.say(self.run(message), acknowledged=[message]) == []
        return message

    @staticmethod
    def run(message: Mapping[str, Any], state: str = "preparing", **more: Any) -> dict[str, Any]:
        return {"uuid": message["uuid"], "claim": message["claim"], "state": state, **more}

    def upload(self, message: Mapping[str, Any], **files: str) -> None:
        content = tar_gz({name: text.encode() for name, text in files.items()})
        self.client.upload(
            message["uuid"], content, filename="bundle.tar.gz", claim=message["claim"]
        )

    def finish(self, message: Mapping[str, Any], exitcode: int = 0, **files: str) -> None:
        """Upload and report the end."""
        self.upload(message, **(files or {"stdout": ""}))
        [told] = self.say(self.run(message, "finalizing", exitcode=exitcode))
        assert told["type"] == "mark_finalized"
        assert self.say(acknowledged=[told]) == []

    def leave(self, reason: str = "") -> list[str]:
        return self.client.checkout(self.worker_id, self.session, reason)


class InBackground:
    """A call in a thread; ``result`` waits for what it returned or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self, timeout_seconds: float = 30.0) -> Any:
        self._thread.join(timeout_seconds)
        assert not self._thread.is_alive(), "it did not end"
        if self._error is not None:
            raise self._error
        return self._value
