"""Runs bundles in images by the command line of apptainer, or of singularity, its elder name.

No daemon has a part in it: a run is a process like those of worker.runtimes.process, with another
program around it. Memory is kept within its limit by sampling, as there: apptainer's own limits
need a systemd that delegates control groups to its user. Images are the business of worker.sifs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worker.loop import Loop
from worker.pulls import Image, ImageFailed
from worker.runtimes.base import CannotStart, Ended, Job, Prepared, mount_name
from worker.runtimes.process import ENTERED, ProcessRuntime
from worker.sifs import Sifs

DEFAULT_CPU_IMAGE = "codalab/default-cpu:latest"
DEFAULT_GPU_IMAGE = "codalab/default-gpu:latest"

INSIDE = (
    f"echo {ENTERED} >&2; HOME=$PWD; export HOME; shell=/bin/sh; "
    '[ -x /bin/bash ] && shell=/bin/bash; exec "$shell" -c "$1" </dev/null >>stdout 2>>stderr'
)
PASSED = ("CODALAB", "CODALAB_BUNDLE_UUID", "CUDA_VISIBLE_DEVICES", "BUNDLE_RUN")


class Apptainer:
    """A worker.runtimes.process.Wrapper. ``program``: where it is; ``images``: each run's, by
    key."""

    def __init__(self, program: str, images: Mapping[str, Image]) -> None:
        self._program = program
        self._images = images

    def dependency_paths(self, uuid: str) -> Path:
        return Path(f"/{uuid}_dependencies")

    def command_line(self, job: Job, shell: str) -> list[str]:
        line = [self._program, "--silent", "exec", "--containall", "--no-home"]
        line += ["--pwd", f"/{job.uuid}"]
        line += _bind(job.directory, f"/{job.uuid}") + _bind(job.place / "tmp", "/tmp")
        root = self.dependency_paths(job.uuid)
        for path, content in job.contents.items():
            line += _bind(content, f"{root}/{mount_name(path)}", read_only=True)
        if job.gpus:
            line.append("--nv")
        if not job.network:
            line += ["--net", "--network", "none"]
        return [*line, self._images[job.key].id, "/bin/sh", "-c", INSIDE, "sh", job.command]

    def environment(self, job: Job) -> Mapping[str, str]:
        """Of what is around it, nothing comes into a container but what is named so."""
        inside = {
            "CODALAB": "true",
            "CODALAB_BUNDLE_UUID": job.uuid,
            "BUNDLE_RUN": str(job.place),
            "TMPDIR": "/tmp",
        }
        if job.gpus is not None:
            inside["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
            inside["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi numbers them
        prefix = "SINGULARITYENV" if Path(self._program).name == "singularity" else "APPTAINERENV"
        return {f"{prefix}_{name}": value for name, value in inside.items()}


def _bind(source: Path, target: str, *, read_only: bool = False) -> list[str]:
    if not any(sign in f"{source}{target}" for sign in ",:"):
        return ["--bind", f"{source}:{target}{':ro' if read_only else ''}"]
    # Where these would mean something, a line of comma-separated values does.
    fields = ["type=bind", f"source={source}", f"destination={target}", *(["ro"] * read_only)]
    quoted = ['"' + field.replace('"', '""') + '"' for field in fields]
    return ["--mount", ",".join(quoted)]


class ApptainerRuntime(ProcessRuntime):
    """See worker.runtimes.base.Runtime for the promises."""

    def __init__(self, loop: Loop, ended: Ended, program: str, sifs: Sifs) -> None:
        self._found: dict[str, Image] = {}
        self._asked: dict[str, tuple[str, Callable[[Image | ImageFailed], None]]] = {}
        self._sifs = sifs
        super().__init__(loop, ended, Apptainer(program, self._found))
        self.name = Path(program).name

    def prepare(self, job: Job, done: Prepared) -> None:
        reference = job.image or (DEFAULT_GPU_IMAGE if job.gpus else DEFAULT_CPU_IMAGE)

        def found(result: Image | ImageFailed) -> None:
            self._asked.pop(job.key, None)
            if isinstance(result, ImageFailed):
                done(CannotStart(str(result)))
            else:
                self._found[job.key] = result
                done(None)

        self._asked[job.key] = (reference, found)
        self._sifs.request(reference, found)

    def withdraw(self, key: str) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._sifs.withdraw(*asked)

    def status(self, key: str) -> str:
        asked = self._asked.get(key)
        return self._sifs.status(asked[0]) if asked is not None else ""

    def start(self, job: Job) -> Mapping[str, Any]:
        image = self._found[job.key]
        return {**super().start(job), "image": image.digest or image.reference}

    def forget(self, key: str) -> None:
        super().forget(key)
        image = self._found.pop(key, None)
        if image is not None:
            self._sifs.release(image)

    def close(self) -> None:
        self._sifs.close()
        super().close()
