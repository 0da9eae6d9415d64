"""A worker that runs nothing: a test says what its runs did. Speaks the wire as a real one does."""

from __future__ import annotations

import gzip
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundles.archive import pack
from bundles.client import Client

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 30.0


@dataclass
class HandRun:
    """One run: its directory, and what is to be reported about it."""

    uuid: str
    claim: int
    command: str
    directory: Path
    state: str = "preparing"
    exitcode: int | None = None
    failure_message: str | None = None
    finalized: bool = False
    written: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "claim": self.claim,
            "run_status": "",
            "bundle_start_time": 0.0,
            "container_time_total": 0.0,
            "container_time_user": 0.0,
            "container_time_system": 0.0,
            "docker_image": None,
            "state": self.state,
            "remote": "hand",
            "exitcode": self.exitcode,
            "failure_message": self.failure_message,
        }


class HandWorker:
    """Checks in from a thread of its own until it is closed; ``runs`` by uuid."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.runs: dict[str, HandRun] = {}
        self._client = client
        self._directory = directory
        self._session = uuid.uuid4().hex
        self._sequence = 0
        self._acknowledged: list[str] = []
        self._handled: set[str] = set()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._client.checkout("hand", self._session, "the test is over")
        self._client.close()
        if self._fault:
            raise self._fault

    def __enter__(self) -> HandWorker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, uuid: str) -> HandRun:
        """Wait until the bundle is assigned to this worker, and have it running."""
        self._until(lambda: uuid in self.runs)
        run = self.runs[uuid]
        run.state = "running"
        return run

    def finish(self, run: HandRun, exitcode: int = 0, failure_message: str | None = None) -> None:
        """Upload the directory, report the end, and wait until the server has it."""
        self._client.upload(
            run.uuid, pack(run.directory), filename="bundle.tar.gz", claim=run.claim
        )
        run.exitcode, run.failure_message = exitcode, failure_message
        run.state = "finalizing"
        self._until(lambda: run.finalized)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until something that a message brings about is so."""
        self._until(condition)

    def _until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            so = self._changed.wait_for(lambda: condition() or self._fault, PATIENCE_SECONDS)
        if self._fault:
            raise self._fault
        assert so, "what the test waits for does not happen"

    def _loop(self) -> None:
        try:
            while not self._closing.is_set():
                self._check_in()
        except BaseException as fault:
            with self._changed:
                self._fault = fault
                self._changed.notify_all()

    def _check_in(self) -> None:
        self._sequence += 1
        acknowledged, self._acknowledged = self._acknowledged, []
        messages = self._client.checkin(
            "hand",
            {
                "tag": None,
                "group_name": None,
                "cpus": 4,
                "gpus": 0,
                "memory_bytes": 16 * 1024**3,
                "free_disk_bytes": 16 * 1024**3,
                "dependencies": [],
                "hostname": "hand",
                "runs": [run.document() for run in self.runs.values()],
                "shared_file_system": False,
                "tag_exclusive": False,
                "exit_after_num_runs": 1000,
                "is_terminating": False,
                "preemptible": False,
                "features": ["batch", "claims"],
                "session": self._session,
                "sequence": self._sequence,
                "acknowledged": acknowledged,
                "wait_seconds": POLL_SECONDS,
            },
        )
        for message in messages:
            self._acknowledged.append(message["id"])
            if message["id"] not in self._handled:
                self._handled.add(message["id"])
                self._handle(message)
        with self._changed:
            self._changed.notify_all()

    def _handle(self, message: dict[str, Any]) -> None:
        kind, name = message["type"], message.get("uuid") or message["bundle"]["uuid"]
        if kind == "run":
            directory = self._directory / f"{name}-{message['claim']}"
            directory.mkdir(parents=True)
            self.runs[name] = HandRun(
                name, message["claim"], message["bundle"]["command"], directory
            )
            return
        run = self.runs[name]
        if kind == "kill":
            self._client.upload(
                run.uuid, pack(run.directory), filename="bundle.tar.gz", claim=run.claim
            )
            run.failure_message = message.get("kill_message") or "Kill requested"
            run.state = "finalizing"
        elif kind == "write":
            run.written[message["subpath"]] = message["string"]
        elif kind == "read":
            self._read(run, message)
        elif kind in ("mark_finalized", "revoke"):
            run.finalized = True
            del self.runs[name]

    def _read(self, run: HandRun, message: dict[str, Any]) -> None:
        path = run.directory / message["path"]
        arguments = message["read_args"]
        if not path.exists():
            self._client.reply(
                "hand",
                message["socket_id"],
                {"error_code": 404, "error_message": f"{message['path']} is not there"},
            )
        elif arguments["type"] == "get_target_info":
            kind = "directory" if path.is_dir() else "file"
            info = {"name": path.name, "type": kind, "size": path.stat().st_size, "perm": 0o644}
            self._client.reply("hand", message["socket_id"], {"target_info": info})
        else:
            content = path.read_bytes()
            if arguments["type"] == "read_file_section":
                start = arguments["offset"]
                content = content[start : start + arguments["length"]]
            self._client.reply_data("hand", message["socket_id"], {}, gzip.compress(content))
