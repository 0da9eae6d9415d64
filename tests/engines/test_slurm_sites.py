"""A real cluster whose site has rules of its own, as most have: its word before every submission,
other comments in the place of ours, partitions that are hidden, short arrays, few jobs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from managing import eventually
from slurm_cluster import SlurmCluster
from slurm_pool import Pool

from backends.base import Invalid, Job, JobState, LaunchKey, OutOfCapacity, Unreachable
from backends.slurm.cluster import Cluster
from backends.slurm.commands import Commands
from backends.slurm.jobs import Mark

pytestmark = pytest.mark.engine("slurm")

LONGEST_ARRAY = 5
MOST_JOBS = 40
AS_NOBODY = "setpriv --reuid=nobody --regid=nogroup --clear-groups"

RULES = """
function slurm_job_submit(job, partitions, user)
    slurm.log_user("Welcome: munge and authentication are new, see our pages")
    if job.name == "unpaid" then
        slurm.log_user("Name a project with --account")
        return slurm.ERROR
    end
    if job.name ~= "planted" then
        job.comment = "project=none"
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
"""


class Site(SlurmCluster):
    def _write_configuration(self, first: int, accounting: str) -> None:
        super()._write_configuration(first, accounting)
        text = self.configuration.read_text()
        for ours, theirs in (
            ("bf_interval=1", f"bf_interval=1,max_array_tasks={LONGEST_ARRAY}"),
            ("MaxJobCount=20000", f"MaxJobCount={MOST_JOBS}"),
            ("Default=YES MaxTime=INFINITE", "Default=YES MaxTime=7-0"),
        ):
            assert ours in text
            text = text.replace(ours, theirs)
        text += "JobSubmitPlugins=lua\nPartitionName=hidden Nodes=n1 Hidden=YES State=UP\n"
        self.configuration.write_text(text)
        (self.directory / "job_submit.lua").write_text(RULES)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    cluster = Site(nodes=2, accounting=False, min_job_age=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def pool(site: Site, tmp_path: Path) -> Iterator[Pool]:
    yield Pool(site, tmp_path, time="1-0")
    site.clear()


@pytest.fixture
def other_place(tmp_path: Path) -> Path:
    """Of a second pool."""
    place = tmp_path / "other"
    place.mkdir()
    return place


def test_jobs_are_ours_whatever_comment_the_site_gives_them(pool: Pool) -> None:
    """Taken for gone, they would be launched again and again."""
    jobs = pool.launch(number=2)
    backend = pool.restarted()
    for job in jobs:
        eventually(lambda job=job: "running" in backend.logs(job.id), "its worker runs")  # type: ignore[misc]
    assert [job.state for job in backend.list_jobs()] == [JobState.ACTIVE] * 2
    assert {job.key for job in backend.list_jobs()} == {job.key for job in jobs}
    assert backend.terminate([jobs[0].id]) == {jobs[0].id: None}
    assert pool.ended(jobs[0]).exit_code == 7
    assert pool.job(jobs[1]).state is JobState.ACTIVE


def test_rows_are_as_long_as_arrays_may_be(pool: Pool) -> None:
    pool.launch("exit 0", 2 * LONGEST_ARRAY + 1)
    assert pool.submissions() == 3


def test_a_refusal_is_told_in_the_site_s_own_words(pool: Pool, other_place: Path) -> None:
    unpaid = Pool(pool.cluster, other_place, job_name="unpaid", time="1-0")
    (result,) = unpaid.backend.launch(unpaid.requests("exit 0"))
    assert type(result) is Invalid
    assert "Name a project with --account / Unspecified error" in str(result)
    assert "munged running" not in str(result)
    (wrong,) = [found for found in unpaid.backend.check() if found.error]
    assert type(wrong.error) is Invalid
    assert "Name a project with --account" in wrong.sentence
    assert wrong.subject == "--account"


def test_a_site_s_welcome_is_not_what_slurm_says_of_the_job(pool: Pool) -> None:
    (job,) = [found for found in pool.backend.check() if found.subject == "the job"]
    assert re.match(r"Slurm would take it: Job \d+ to start at 2\d{3}-", job.sentence)


def test_more_time_than_the_default_partition_allows_is_a_warning(
    pool: Pool, other_place: Path
) -> None:
    endless = Pool(pool.cluster, other_place, time="10-0")
    (wrong,) = [found for found in endless.backend.check() if found.error]
    assert (wrong.subject, type(wrong.error)) == ("--time", OutOfCapacity)
    assert "7-00:00:00" in wrong.remedy
    assert not [found for found in pool.backend.check() if found.error]
    endless.environment["SBATCH_PARTITION"] = "hidden"
    assert not [found for found in endless.restarted().check() if found.error]


def test_a_user_s_jobs_in_a_hidden_partition_are_seen(pool: Pool, tmp_path: Path) -> None:
    """An administrator sees them anyway."""
    directory = tmp_path / "as-nobody"
    directory.mkdir()
    for program in ("sbatch", "squeue", "scancel", "scontrol"):
        (directory / program).write_text(
            f'#!/bin/sh\nexec {AS_NOBODY} {shutil.which(program)} "$@"'
        )
        (directory / program).chmod(0o755)
    environment = {**pool.environment, "PATH": f"{directory}:{pool.environment['PATH']}"}
    mark = Mark("0123456789abcdef", "p", LaunchKey.make("p", 1), 1)
    pool.cluster.command(
        *("sbatch", "--array=0-0", "--partition=hidden", f"--comment={mark}", "--mem=10"),
        *("--job-name=planted", "--output=/dev/null", "--chdir=/", "--wrap=sleep 1000"),
        user="nobody",
    )
    cluster = Cluster(Commands(environment), 65534)
    assert [found for _, found in cluster.queue({})] == [mark]
    assert "State=UP" in Commands(environment).ask(
        "looking", "scontrol", "--all", "show", "partition", "hidden"
    )


def test_whose_jobs_they_are_is_not_asked_of_the_environment(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "nobody")
    job = pool.launch()[0]
    assert [found.id for found in pool.restarted().list_jobs()] == [job.id]
    assert pool.job(job).state is not JobState.ENDED


def test_a_job_that_somebody_requeues_after_its_end_has_not_ended(pool: Pool) -> None:
    job = pool.run("echo running; while [ ! -e go ]; do sleep 0.1; done; exit 3")
    pool.update(job, "requeue=1")
    next(pool.directory.glob("p-*")).joinpath("go").touch()
    assert pool.ended(job).exit_code == 3
    pool.cluster.command("scontrol", "requeue", job.id)
    assert pool.job(job).state is JobState.PENDING


def test_of_a_full_cluster_the_word_is_told_on_which_sbatch_waits(pool: Pool) -> None:
    backend = pool.restarted(submit_seconds=3.0)
    results = backend.launch(pool.requests("sleep 1000", MOST_JOBS + 1))
    refused = [result for result in results if not isinstance(result, Job)]
    assert refused
    assert {type(result) for result in refused} == {Unreachable}
    assert "temporarily unable to accept job" in str(refused[0])
