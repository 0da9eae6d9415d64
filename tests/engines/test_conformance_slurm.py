"""Jobs of a real cluster keep the promises that every backend keeps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from slurm_commands import Fault, SlurmCommands

from backends.base import Backend, Context, Job
from backends.conformance import Circumstance, Conformance, Harness, leave_word, stand_in
from backends.conformance.stand import Stand
from backends.slurm.backend import Slurm
from backends.slurm.commands import Commands
from backends.slurm.settings import Options

pytestmark = pytest.mark.engine("slurm")

FAULTS: dict[Circumstance, Fault] = {
    Circumstance.REPLY_LOST: "lose-reply",
    Circumstance.LIST_TORN: "tear",
    Circumstance.HANGING: "hang",
    Circumstance.UNREACHABLE: "unreachable",
    Circumstance.UNAUTHORIZED: "refuse",
    Circumstance.THROTTLED: "throttle",
    Circumstance.BRIEFLY_THROTTLED: "throttle-twice",
}


class SlurmHarness(Harness):
    """A cluster, and its commands with something in front of them."""

    unknown_id = "9999999_0"

    def __init__(self, cluster: SlurmCluster, directory: Path) -> None:
        self.cluster = cluster
        self.commands = SlurmCommands(directory / "commands")
        self._words = directory / "words"
        self._words.mkdir()
        self.worker = stand_in(self._words)

    def backend(self, context: Context) -> Backend:
        path = f"{self.commands.directory}:{context.environment['PATH']}"
        environment = {**context.environment, **self.cluster.reach, "PATH": path}
        return Slurm(
            replace(context, environment=environment),
            Options(self.resources),
            commands=Commands(environment, read_seconds=2.0, submit_seconds=2.0),
        )

    def finish(self, job: Job, exit_code: int) -> None:
        leave_word(self._words, job.key, exit_code)

    def kill(self, job: Job) -> None:
        self.cluster.command("scancel", job.id)

    def preempt(self, job: Job) -> None:
        node = self.cluster.command("squeue", "-h", "-j", job.id, "-o", "%N").strip()
        self.cluster.fail_node(node)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.cluster.command("scontrol", "update", "partitionname=main", "state=down")
        try:
            yield
        finally:
            if len(self.cluster.command("squeue", "-h", "-r", "-o", "%i").split()) > 100:
                self.cluster.command("scancel", "--user=root")  # a thousand need not start here
            self.cluster.command("scontrol", "update", "partitionname=main", "state=up")

    @contextmanager
    def _full(self) -> Iterator[None]:
        nodes = ",".join(self.cluster.node_names)
        self.cluster.command("scontrol", "update", f"node={nodes}", "state=drain", "reason=test")
        try:
            yield
        finally:
            self.cluster.command("scontrol", "update", f"node={nodes}", "state=resume")

    @contextmanager
    def _limited(self) -> Iterator[None]:
        self.cluster.limit_jobs("root", 0)
        try:
            yield
        finally:
            self.cluster.limit_jobs("root", -1)

    def during(self, circumstance: Circumstance) -> AbstractContextManager[None]:
        if circumstance is Circumstance.HELD:
            return self._held()
        if circumstance is Circumstance.OUT_OF_CAPACITY:
            return self._full()
        if circumstance is Circumstance.QUOTA_EXCEEDED:
            return self._limited()
        return self.commands.failing(FAULTS[circumstance])

    def plant_neighbours(self, context: Context) -> list[str]:
        """Named as ours; with our mark in capitals, of another pool, cut short and lengthened; and
        with all of our mark, but another user's."""
        key = f"{context.pool}-7-{secrets.token_hex(4)}"
        mark = f"worker-manager/{context.owner}/{context.pool}/{key}/1"
        planted = [
            self._plant("root", context.pool, comment)
            for comment in (
                "",
                mark.replace(context.owner, context.owner.upper() + "A")[: len(mark)],
                mark.replace(f"/{context.pool}/", f"/{context.pool}-1/"),
                mark.upper(),
                mark[:-2],
                f"{mark}/",
                f"x{mark}",
            )
        ]
        return [*planted, self._plant("nobody", context.pool, mark)]

    def _plant(self, user: str, name: str, comment: str) -> str:
        array = self.cluster.command(
            *("sbatch", "--parsable", "--array=0-0", f"--job-name={name}", "--mem=10"),
            *(f"--comment={comment}", "--output=/dev/null", "--wrap=sleep 1000"),
            user=user,
        ).strip()
        return f"{array}_0"

    def is_untouched(self, job_id: str) -> bool:
        state = self.cluster.command("squeue", "-h", "-r", "-j", job_id, "-o", "%T").strip()
        return state in ("RUNNING", "PENDING")

    def calls(self) -> int:
        return len(self.commands.calls)

    def sent(self) -> str:
        return "\n".join([*self.commands.calls, self.commands.scripts])


class TestSlurm(Conformance):
    @pytest.fixture
    def harness(self, slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[SlurmHarness]:
        try:
            yield SlurmHarness(slurm_cluster, tmp_path)
        finally:
            slurm_cluster.clear()

    @pytest.mark.parametrize("circumstance", [Circumstance.UNREACHABLE, Circumstance.HANGING])
    def test_a_refused_log_is_an_error_of_its_kind(  # type: ignore[override]
        self, stand: Stand, circumstance: Circumstance
    ) -> None:
        """Logs are files: they can be read whatever Slurm does."""
        job = stand.run_one()
        with stand.harness.during(circumstance):
            assert f"worker {job.key}\n" in stand.logs(job)
