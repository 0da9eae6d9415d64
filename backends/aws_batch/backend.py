"""AWS Batch as a backend: puts together what the other modules of this package know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from backends.aws_batch import checks
from backends.aws_batch.connection import Connection, Patience
from backends.aws_batch.definition import LONGEST_ARRAY, definition, preview, submission
from backends.aws_batch.errors import code_of, was_never_sent
from backends.aws_batch.job_queue import Platform, Queue, read_queue
from backends.aws_batch.jobs import log_group, log_stream
from backends.aws_batch.launches import KEPT_SECONDS, Launch, Launches
from backends.aws_batch.mark import SET_TAG, definition_name, ending_reason, owner_tags
from backends.aws_batch.options import AwsSettings
from backends.aws_batch.parameters import Parameters
from backends.aws_batch.roster import (
    ENDED_LISTED_SECONDS,
    LAG_SECONDS,
    Place,
    Roster,
    just_submitted,
)
from backends.base import (
    KEY,
    BackendError,
    Capabilities,
    Context,
    Finding,
    Idempotency,
    Invalid,
    Job,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Preview,
    Throttled,
    Unreachable,
    rows,
)

WORK_DIRECTORY_ROOT = "/var/tmp/worker-manager"
LOOKS = 3
"""So often a submission whose reply was lost is looked for before the next list has to tell."""
ENDS_AT_ONCE = 8
"""TerminateJob ends one job a call; AWS allows 50 calls a second."""
LOG_BYTES = 1024**2
LOG_PAGES = 100
"""So many calls one log may take, whatever CloudWatch says of further pages."""


class AwsBatch:
    """The jobs of one pool on one queue (see backends.base.Backend for the promises)."""

    def __init__(
        self,
        context: Context,
        settings: AwsSettings,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        prefix = context.work_directory_prefix
        if prefix is not None and not prefix.strip("/"):
            raise Invalid(f"--worker-work-dir-prefix {prefix!r} is no directory of its own")
        if prefix is not None and not prefix.startswith("/"):
            raise Invalid(
                f"--worker-work-dir-prefix {prefix!r} must begin with / on a machine of AWS"
            )
        self._context = context
        self._settings = settings
        self._clock = clock
        self._pause = pause
        self._connection = Connection(
            settings.region,
            settings.profile,
            settings.endpoint,
            context.environment,
            patience or Patience(),
        )
        self._launches = Launches(context.directory)
        self._roster = Roster(context, self._connection)
        self._parameters = Parameters(context, self._connection)
        self._definition_name = definition_name(context, settings.job_definition_name)
        self._definitions: dict[str, str] = {}
        self._queue: Queue | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Asks AWS once what the queue's machines are. While it gives no answer the options alone
        tell: nothing is launched before a list, and that asks the same. Raises BackendError."""
        try:
            queue = self._look_at_queue()
        except (Throttled, Unreachable):
            queue = checks.supposed_queue(self._settings)
        return Capabilities(
            launches_per_call=LONGEST_ARRAY,
            idempotency=Idempotency.LOOKUP,
            ended_listed_seconds=ENDED_LISTED_SECONDS,
            listing_lag_seconds=LAG_SECONDS,
            worker_runtime="docker" if queue.platform is Platform.EC2 else "process",
            preemptible=queue.preemptible,
        )

    @property
    def account(self) -> str | None:
        """As far as the options tell: two profiles of one account count as two."""
        settings = self._settings
        return " ".join(filter(None, (settings.endpoint, settings.profile, settings.region)))

    @property
    def work_directory(self) -> str:
        return f"{self._work_directory_root}/{KEY}"

    @property
    def _work_directory_root(self) -> str:
        return (self._context.work_directory_prefix or WORK_DIRECTORY_ROOT).rstrip("/")

    def _look_at_queue(self) -> Queue:
        if self._queue is None:
            name = self._settings.job_queue
            detail = checks.describe_queue(self._connection, name)
            environments = checks.describe_environments(self._connection, name, detail)
            self._queue = read_queue(detail, environments, self._settings.platform)
        return self._queue

    def check(self) -> list[Finding]:
        return checks.check(self._connection, self._settings)

    # Launch

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run:
            return self._preview(requests)
        results: dict[LaunchKey, LaunchResult] = {}
        fresh: list[LaunchRequest] = []
        again: dict[Launch, list[LaunchKey]] = {}
        for request in requests:
            try:
                self._must_be_ours(request.key)
                earlier = self._launches.of(request.key)
            except BackendError as error:
                results[request.key] = error
                continue
            if earlier is None:
                fresh.append(request)
            else:
                again.setdefault(earlier, []).append(request.key)
        for launch, keys in again.items():
            results |= _for_all(keys, partial(self._seek, launch, keys))
        for row in rows(fresh, LONGEST_ARRAY):
            keys = [request.key for request in row]
            results |= _for_all(keys, partial(self._submit, row))
        return [results[request.key] for request in requests]

    def _must_be_ours(self, key: LaunchKey) -> None:
        if key.pool != self._context.pool:
            raise Invalid(f"{key} is not a key of the pool {self._context.pool}")

    def _submit(self, row: Sequence[LaunchRequest]) -> dict[LaunchKey, LaunchResult]:
        """One submission for a row of requests. Raises BackendError: nothing was submitted, or
        after Unreachable nobody knows."""
        first, now = row[0], self._clock()
        queue = self._look_at_queue()
        for finding in checks.refusals(self._settings, queue, bool(first.secrets)):
            if finding.error is not None:
                raise finding.error
        self._launches.forget(
            launch
            for launch in self._launches.all()
            if now - launch.asked > KEPT_SECONDS and not self._roster.has(launch.job_id)
        )
        definition = self._definition(queue, first)
        if not self._settings.secret:
            self._parameters.write(first.secrets)
        asked = submission(self._context, self._settings, queue, definition, row)
        launch = Launch(str(first.key), len(row), queue.arn, self._definition_name, now)
        self._launches.intend(launch)
        doing = f"submitting {len(row)} workers to --job-queue {self._settings.job_queue}"
        try:
            answer = self._connection.ask("batch", "submit_job", doing, repeatable=False, **asked)
        except Unreachable as error:
            if was_never_sent(error):
                self._launches.forget([launch])
                raise
            return self._seek(launch, [request.key for request in row], error)
        except BackendError as error:
            self._launches.forget([launch])
            if isinstance(error, Invalid):
                self._definitions.clear()  # somebody may have deregistered it
            raise
        launch = self._launches.identify(launch, answer["jobId"])
        self._roster.learn(launch)
        jobs = just_submitted(first.key, len(row), launch.job_id, now)
        return {request.key: job for request, job in zip(row, jobs, strict=True)}

    def _seek(
        self, launch: Launch, keys: Sequence[LaunchKey], lost: Unreachable | None = None
    ) -> dict[LaunchKey, LaunchResult]:
        """The jobs of keys that were submitted before. Raises Unreachable when none is found:
        it is never submitted again, because AWS may only be slow to show it.

        ``lost``: the submission's own error, when it was just now: it is looked for repeatedly.
        """
        if not launch.job_id:
            launch = self._identified(launch, lost)
        self._roster.learn(launch)
        jobs = self._roster.look([launch.worker(key) for key in keys], self._clock())
        results: dict[LaunchKey, LaunchResult] = {}
        for key in keys:
            gone = Invalid(f"{key} was launched, and AWS has forgotten its job")
            results[key] = jobs.get(launch.worker(key), gone)
        return results

    def _identified(self, launch: Launch, lost: Unreachable | None) -> Launch:
        doing = f"looking for the job {launch.first}, whose submission was not answered"
        for look in range(LOOKS if lost else 1):
            if look:
                self._pause(self._connection.patience.first_wait_seconds * 2**look)
            found = self._roster.find(launch.first, launch.queue, doing)
            if found is not None:
                return self._launches.identify(launch, found.id)
        raise Unreachable(
            f"{lost or doing}: AWS shows no job {launch.first}, and it may come yet"
        ) from lost

    def _definition(self, queue: Queue, request: LaunchRequest) -> str:
        """The ARN of the revision that a request needs, registered when there is none yet."""
        asked = self._wanted_definition(queue, request)
        digest = asked["tags"][SET_TAG]
        if digest not in self._definitions:
            found = self._registered(digest)
            if found is None:
                doing = f"registering the job definition {self._definition_name}"
                try:
                    answer = self._connection.ask(
                        "batch", "register_job_definition", doing, repeatable=False, **asked
                    )
                    found = answer["jobDefinitionArn"]
                except Unreachable:
                    found = self._registered(digest)
                    if found is None:
                        raise
            self._definitions[digest] = found
        return self._definitions[digest]

    def _registered(self, digest: str) -> str | None:
        """The newest revision of ours that is made of what has this digest."""
        expected = {**owner_tags(self._context), SET_TAG: digest}
        found: list[tuple[int, str]] = []
        for page in self._connection.pages(
            "batch",
            "describe_job_definitions",
            f"looking for the job definition {self._definition_name}",
            jobDefinitionName=self._definition_name,
            status="ACTIVE",
        ):
            for detail in page["jobDefinitions"]:
                tags = detail.get("tags") or {}
                if {name: tags.get(name) for name in expected} == expected:
                    found.append((detail["revision"], detail["jobDefinitionArn"]))
        return max(found)[1] if found else None

    def _wanted_definition(self, queue: Queue, request: LaunchRequest) -> dict[str, Any]:
        if self._settings.secret:
            places = {name: f"{self._settings.secret}:{name}::" for name in request.secrets}
        else:
            places = self._parameters.places(queue.parameters_arn, request.secrets)
        return definition(
            self._context,
            self._settings,
            queue.platform,
            self._definition_name,
            self._work_directory_root,
            places,
        )

    def _preview(self, requests: Sequence[LaunchRequest]) -> list[LaunchResult]:
        """Without asking what the queue is, when nobody has asked yet."""
        queue = self._queue or checks.supposed_queue(self._settings)
        refusals = checks.refusals(self._settings, queue, any(r.secrets for r in requests))
        error = next((finding.error for finding in refusals if finding.error), None)
        results: dict[LaunchKey, LaunchResult] = {}
        for row in rows(requests, LONGEST_ARRAY):
            asked = self._wanted_definition(queue, row[0])
            text = preview(
                asked,
                submission(self._context, self._settings, queue, self._definition_name, row),
            )
            for request in row:
                results[request.key] = error or Preview(text)
                try:
                    self._must_be_ours(request.key)
                except Invalid as refusal:
                    results[request.key] = refusal
        return [results[request.key] for request in requests]

    # List

    def list_jobs(self) -> list[Job]:
        launches = self._launches.all()
        places = {Place(self._look_at_queue().arn, self._definition_name)}
        # The options may be others since a submission whose reply was lost.
        places |= {Place(lost.queue, lost.definition) for lost in launches if not lost.job_id}
        return self._roster.jobs(sorted(places), launches, self._clock())

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        living: list[str] = []
        try:
            self._learn()
        except BackendError as error:
            return dict.fromkeys(job_ids, error)
        for job_id in job_ids:
            try:
                if self._ours(job_id) and not self._roster.is_ended(job_id):
                    living.append(job_id)
                results[job_id] = None
            except BackendError as error:
                results[job_id] = error
        if living:
            with ThreadPoolExecutor(ENDS_AT_ONCE) as pool:
                results.update(zip(living, pool.map(self._terminate, living), strict=True))
        return {job_id: results[job_id] for job_id in job_ids}

    def _terminate(self, job_id: str) -> BackendError | None:
        """Of a job that does not run yet it is the cancellation. Batch sends SIGTERM, and SIGKILL
        to what has not ended 30 s later: asking again changes nothing."""
        try:
            self._connection.ask(
                "batch",
                "terminate_job",
                f"ending {job_id}",
                jobId=job_id,
                reason=ending_reason(self._context),
            )
        except BackendError as error:
            return error
        return None

    def _learn(self) -> None:
        """Know our submissions without asking for them."""
        for launch in self._launches.all():
            self._roster.learn(launch)

    def _ours(self, job_id: str) -> bool:
        """Whether AWS knows a job of ours of this id. Raises Invalid when it is another's."""
        ours = self._roster.is_ours(job_id)
        if ours is False:
            raise Invalid(f"{job_id} is not a worker of the pool {self._context.pool}")
        return bool(ours)

    # Logs

    def logs(self, job_id: str) -> str:
        self._learn()
        unknown = Invalid(f"there is no job {job_id} in AWS Batch")
        if not self._ours(job_id):
            raise unknown
        detail = self._roster.describe([job_id]).get(job_id)
        if detail is None:
            raise unknown
        stream = log_stream(detail)
        return self._read_log(log_group(detail), stream) if stream else ""

    def _read_log(self, group: str, stream: str) -> str:
        """Backwards from the end, a page (of a MiB at most) at a time. A page may be empty before
        the last one, which alone gives its own token again (GetLogEvents)."""
        doing = f"reading the log stream {stream} of {group}"
        lines: list[str] = []
        token: str | None = None
        for _ in range(LOG_PAGES):
            following: dict[str, Any] = {"nextToken": token} if token else {}
            try:
                page = self._connection.ask(
                    "logs",
                    "get_log_events",
                    doing,
                    logGroupName=group,
                    logStreamName=stream,
                    startFromHead=False,
                    **following,
                )
            except Invalid as error:
                if code_of(error.__cause__) == "ResourceNotFoundException":
                    return ""  # nothing was printed yet
                raise
            lines[:0] = [f"{event['message']}\n" for event in page["events"]]
            last, token = token, page.get("nextBackwardToken")
            if token == last or sum(map(len, lines)) >= LOG_BYTES:
                break
        return "".join(lines).encode()[-LOG_BYTES:].decode(errors="replace")


def _for_all(
    keys: Iterable[LaunchKey], launch: Callable[[], dict[LaunchKey, LaunchResult]]
) -> dict[LaunchKey, LaunchResult]:
    """What ``launch`` returns, or its error for each key."""
    try:
        return launch()
    except BackendError as error:
        return dict.fromkeys(keys, error)
