"""Which jobs are ours, and how they are: ListJobs finds what was submitted, DescribeJobs says the
rest. Ends nothing, submits nothing.

Calls for n living workers: one page of ListJobs a queue (only what was created since the last
list, newest first), and ceil(n / 100) times DescribeJobs, in which children of an array are asked
for by their ids. What has ended never changes, and is not asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.aws_batch.connection import Connection
from backends.aws_batch.jobs import is_over, read_job
from backends.aws_batch.launches import KEPT_SECONDS, Launch
from backends.aws_batch.mark import ending_reason, first_key
from backends.base import Context, Job, JobState, LaunchKey, Unreachable

DESCRIBED_AT_ONCE = 100
"""What DescribeJobs takes (its documentation: up to 100 job ids)."""
ENDED_LISTED_SECONDS = 24 * 3600.0
LAG_SECONDS = 60.0
"""So long after a submission AWS may not know of it yet: no published bound, generous."""
MARGIN_SECONDS = 600.0
"""A list goes back so far before the last one: clocks differ, and what was late is still found."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where submissions of ours are found: a queue, and the name of their job definitions."""

    queue: str
    definition: str


@dataclass(frozen=True, slots=True)
class Submission:
    """One job of ours, or an array of them. ``size``: of the array, 1 for a plain job."""

    id: str
    first: LaunchKey
    size: int
    created: float

    @property
    def job_ids(self) -> list[str]:
        if self.size == 1:
            return [self.id]
        return [f"{self.id}:{index}" for index in range(self.size)]

    def has(self, job_id: str) -> bool:
        """Whether this is one of ``job_ids``."""
        if self.size == 1:
            return job_id == self.id
        index = job_id.removeprefix(f"{self.id}:")
        return index.isdecimal() and str(int(index)) == index and int(index) < self.size

    def key(self, job_id: str) -> LaunchKey:
        index = int(job_id.rpartition(":")[2]) if self.size > 1 else 0
        return replace(self.first, sequence=self.first.sequence + index)


class Roster:
    """The jobs of one owner and pool."""

    def __init__(self, context: Context, connection: Connection) -> None:
        self._context = context
        self._connection = connection
        self._submissions: dict[str, Submission] = {}
        self._others: set[str] = set()
        """Ids that were looked at and are not ours, or ended too long ago to be listed."""
        self._ended: dict[str, Job] = {}
        self._shown: dict[str, float] = {}
        """When AWS last described a submission, or a child of it."""
        self._listed: dict[Place, float] = {}

    def jobs(self, places: Iterable[Place], launches: Iterable[Launch], now: float) -> list[Job]:
        """Every job of ours, oldest first. Raises BackendError when one could not be asked for."""
        for launch in launches:
            self.learn(launch)
        for place in places:
            self._discover(place, now)
        found: list[Job] = []
        living: list[Submission] = []
        for submission in self._submissions.values():
            ended = [self._ended[i] for i in submission.job_ids if i in self._ended]
            found += [job for job in ended if _is_recent(job, now)]
            if len(ended) < submission.size:
                living.append(submission)
        found += self._look(living, now)
        self._let_go(now)
        return sorted(found, key=lambda job: (job.created, job.key.sequence if job.key else 0))

    def learn(self, launch: Launch) -> None:
        """Know a submission from its reply, before AWS lists it."""
        if launch.job_id and launch.job_id not in self._others:
            first = LaunchKey.parse(launch.first)
            assert first is not None
            known = Submission(launch.job_id, first, launch.size, launch.asked)
            self._submissions.setdefault(launch.job_id, known)

    def look(self, job_ids: Sequence[str], now: float) -> dict[str, Job]:
        """These jobs of ours, by id; without those that AWS does not know (any more)."""
        wanted = set(job_ids)
        families = {self._family(job_id) for job_id in job_ids}
        living = [self._submissions[f] for f in families if f in self._submissions]
        found = self._look(living, now, wanted - set(self._ended))
        return {job.id: job for job in found} | {
            job_id: self._ended[job_id] for job_id in wanted & set(self._ended)
        }

    def find(self, name: str, queue: str, doing: str) -> Submission | None:
        """The submission of ours of this name: that of a key whose reply was lost."""
        ids: list[str] = []
        filters = [{"name": "JOB_NAME", "values": [name]}]  # takes any case
        for page in self._connection.pages(
            "batch", "list_jobs", doing, jobQueue=queue, filters=filters
        ):
            ids += [job["jobId"] for job in page["jobSummaryList"] if job["jobName"] == name]
        self._admit(id for id in ids if ":" not in id)
        return next((self._submissions[id] for id in ids if id in self._submissions), None)

    def is_ours(self, job_id: str) -> bool | None:
        """None: AWS knows no such job (any more). Raises BackendError."""
        family = self._family(job_id)
        if family not in self._submissions:
            known = self._admit([family])
            if family not in known:
                return None
        submission = self._submissions.get(family)
        return submission is not None and submission.has(job_id)

    def has(self, job_id: str) -> bool:
        """Whether there is such a submission of ours, of which something may be listed."""
        return job_id in self._submissions

    def is_ended(self, job_id: str) -> bool:
        return job_id in self._ended

    def describe(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """DescribeJobs by id, without those that AWS does not know."""
        wanted = list(ids)
        described: dict[str, dict[str, Any]] = {}
        for start in range(0, len(wanted), DESCRIBED_AT_ONCE):
            answer = self._connection.ask(
                "batch",
                "describe_jobs",
                "looking at the jobs of this pool",
                jobs=wanted[start : start + DESCRIBED_AT_ONCE],
            )
            described.update((detail["jobId"], detail) for detail in answer["jobs"])
        return described

    @staticmethod
    def _family(job_id: str) -> str:
        return job_id.partition(":")[0]

    def _discover(self, place: Place, now: float) -> None:
        """Get to know what was submitted since the last time, by whichever process."""
        since = self._listed.get(place, 0.0) - MARGIN_SECONDS
        new: list[str] = []
        for page in self._connection.pages(
            "batch",
            "list_jobs",
            f"listing the jobs of --job-queue {place.queue}",
            jobQueue=place.queue,
            filters=[{"name": "JOB_DEFINITION", "values": [place.definition]}],
        ):
            summaries = page["jobSummaryList"]
            new += [summary["jobId"] for summary in summaries if self._may_be_ours(summary, now)]
            # With a filter the newest come first (ListJobs, `filters`).
            if summaries and min(_created(summary) for summary in summaries) < since:
                break
        self._admit(new)
        self._listed[place] = now

    def _may_be_ours(self, summary: Mapping[str, Any], now: float) -> bool:
        """What is worth a look at its tags."""
        job_id, key = summary["jobId"], LaunchKey.parse(summary["jobName"])
        if key is None or key.pool != self._context.pool or ":" in job_id:
            return False
        if job_id in self._submissions or job_id in self._others:
            return False
        stopped = summary.get("stoppedAt")
        if stopped and is_over(summary.get("status", "")):
            return bool(stopped / 1000 > now - ENDED_LISTED_SECONDS)
        return True

    def _admit(self, ids: Iterable[str]) -> set[str]:
        """Sort submissions into ours and others by their tags; returns those that AWS knows."""
        described = self.describe(ids)
        for job_id, detail in described.items():
            first = first_key(self._context, detail)
            if first is None:
                self._others.add(job_id)
                continue
            size = (detail.get("arrayProperties") or {}).get("size") or 1
            self._submissions[job_id] = Submission(job_id, first, size, _created(detail))
        return set(described)

    def _look(
        self, submissions: Iterable[Submission], now: float, wanted: set[str] | None = None
    ) -> list[Job]:
        """The jobs of these submissions that have not ended yet as far as we know."""
        families = {
            job_id: submission
            for submission in submissions
            for job_id in submission.job_ids
            if job_id not in self._ended and (wanted is None or job_id in wanted)
        }
        described = self.describe(families)
        # A child has no description of its own before its array is spread out.
        childless = {
            family.id
            for job_id, family in families.items()
            if job_id not in described and family.size > 1
        }
        described |= self.describe(childless)
        for job_id in described:
            self._shown[self._family(job_id)] = now
        found: list[Job] = []
        for job_id, family in families.items():
            detail = described.get(job_id) or described.get(family.id)
            if detail is not None:
                job = read_job(
                    detail, family.key(job_id), ending_reason(self._context), job_id=job_id
                )
            elif now - self._shown.get(family.id, 0.0) < MARGIN_SECONDS:
                raise Unreachable(f"AWS does not show the job {job_id}, which it just showed")
            elif now - family.created < LAG_SECONDS:
                job = _just_submitted(family, job_id)
            else:
                continue
            if job.state is JobState.ENDED:
                self._ended[job_id] = job
                if not _is_recent(job, now):
                    continue
            found.append(job)
        return found

    def _let_go(self, now: float) -> None:
        """Of submissions of which everything ended too long ago to be listed, and of those that
        AWS has forgotten."""
        for submission in list(self._submissions.values()):
            shown = self._shown.get(submission.id, submission.created)
            if now - shown > KEPT_SECONDS or all(
                job_id in self._ended and not _is_recent(self._ended[job_id], now)
                for job_id in submission.job_ids
            ):
                for job_id in self._submissions.pop(submission.id).job_ids:
                    self._ended.pop(job_id, None)
                self._shown.pop(submission.id, None)
                self._others.add(submission.id)


def just_submitted(first: LaunchKey, size: int, job_id: str, now: float) -> list[Job]:
    """The jobs of a submission that AWS has just taken."""
    submission = Submission(job_id, first, size, now)
    return [_just_submitted(submission, one) for one in submission.job_ids]


def _just_submitted(submission: Submission, job_id: str) -> Job:
    key = submission.key(job_id)
    return Job(
        id=job_id,
        key=key,
        worker_id=str(key),
        state=JobState.PENDING,
        created=submission.created,
        why="accepted by the queue",
    )


def _is_recent(job: Job, now: float) -> bool:
    return (job.ended or now) > now - ENDED_LISTED_SECONDS


def _created(job: Mapping[str, Any]) -> float:
    return float(job.get("createdAt") or 0) / 1000
