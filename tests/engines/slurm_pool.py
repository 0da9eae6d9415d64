"""One pool on a cluster of the tests, with what they want of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from managing import eventually
from slurm_cluster import SlurmCluster
from slurm_commands import SlurmCommands

from backends.base import KEY, Context, Job, JobResources, JobState, LaunchKey, LaunchRequest
from backends.slurm.backend import Slurm
from backends.slurm.commands import Commands
from backends.slurm.settings import Options

MIB = 1024**2
RESOURCES = JobResources(1, 0, 64 * MIB)
UNTIL_TOLD = """
trap 'echo asked; exit 7' TERM
echo running
while :; do sleep 0.1; done
"""


class Pool:
    """A backend of a pool of its own, and what a test wants of it."""

    def __init__(self, cluster: SlurmCluster, directory: Path, **options: object) -> None:
        self.cluster = cluster
        self.directory = directory / "jobs" / "p"
        self.commands = SlurmCommands(directory / "commands")
        self.environment = {
            **cluster.reach,
            "PATH": f"{self.commands.directory}:{os.environ['PATH']}",
            "LEAK": "of the submitter's environment",
        }
        self.options = Options(RESOURCES, **options)  # type: ignore[arg-type]
        self.owner = secrets.token_hex(8)
        self.sequence = 0
        self.backend = self.restarted()

    def restarted(self, **limits: float) -> Slurm:
        context = Context(self.directory, self.owner, "p", self.environment)
        return Slurm(context, self.options, commands=Commands(self.environment, **limits))

    def requests(
        self, script: str, number: int = 1, resources: JobResources = RESOURCES, **more: object
    ) -> list[LaunchRequest]:
        keys = LaunchKey.make_row("p", self.sequence, number)
        self.sequence += number
        argv = ("/bin/sh", "-c", script, KEY)
        return [LaunchRequest(key, argv, resources, **more) for key in keys]  # type: ignore[arg-type]

    def launch(self, script: str = UNTIL_TOLD, number: int = 1, **more: object) -> list[Job]:
        results = self.backend.launch(self.requests(script, number, **more))  # type: ignore[arg-type]
        assert all(isinstance(result, Job) for result in results), results
        return [result for result in results if isinstance(result, Job)]

    def run(self, script: str = UNTIL_TOLD, **more: object) -> Job:
        """One job, once its worker runs."""
        (job,) = self.launch(script, **more)
        eventually(lambda: "running" in self.backend.logs(job.id), "the worker runs")
        return job

    def job(self, job: Job) -> Job:
        (found,) = [other for other in self.backend.list_jobs() if other.id == job.id]
        return found

    def ended(self, job: Job) -> Job:
        eventually(lambda: self.job(job).state is JobState.ENDED, f"{job.id} ends")
        return self.job(job)

    def lose(self, job: Job) -> None:
        """The job is killed, and its script has no time to leave word."""
        self.cluster.command("scancel", "--signal=KILL", "--full", job.id)
        self.ended(job)
        for path in self.directory.glob("*/*.exit"):
            if self.backend.logs(job.id) == path.with_suffix(".log").read_text():
                path.unlink()

    def update(self, job: Job, *settings: str) -> None:
        self.cluster.command("scontrol", "update", f"jobid={job.id}", *settings)

    def submissions(self) -> int:
        return sum(call.startswith("sbatch") for call in self.commands.calls)
