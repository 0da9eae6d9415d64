"""The jobs of one pool on a Slurm cluster: job arrays, one element a worker.

A launch is written down before sbatch is called (launches), and rides on the array as its comment:
an sbatch whose reply was lost is looked for, and never called again for the same keys.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from backends.base import (
    KEY,
    BackendError,
    Capabilities,
    Context,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    OutOfCapacity,
    Preview,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
    rows,
)
from backends.slurm.check import findings
from backends.slurm.cluster import Cluster
from backends.slurm.commands import Commands, LostReply
from backends.slurm.jobs import (
    Element,
    Evidence,
    Mark,
    gone_job,
    has_ended,
    job,
    parse_id,
    was_refused,
)
from backends.slurm.launches import WORK, Launch, Launches
from backends.slurm.script import preview, script, secrets_text, submission
from backends.slurm.settings import Options

ENDED_KEPT_SECONDS = 24 * 3600.0
ENDED_KEPT = 1000
"""How many ended workers are remembered at most, and how long, by whole launches."""
ENDED_KEPT_AT_LEAST_SECONDS = 600.0
LISTING_LAG_SECONDS = 30.0
"""After an sbatch whose reply was lost the controller may still come to it."""


class Slurm:
    """The jobs of one pool (see backends.base.Backend for the promises)."""

    def __init__(
        self,
        context: Context,
        options: Options,
        *,
        commands: Commands | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._options = options
        self._clock = clock
        self._cluster = Cluster(
            commands or Commands(context.environment),
            # Not by LOGNAME, which may be another's: their queue would be read as ours.
            os.geteuid(),
            clock=clock,
        )
        root = options.work_directory
        self._launches = Launches(
            root / context.owner / context.pool if root else context.directory
        )
        self._ended: dict[LaunchKey, Job] = {}
        """Ends that are known for good, so that a list costs no more with each of them."""
        self._listed: list[Job] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            launches_per_call=self._cluster.known.array_size,
            idempotency=Idempotency.LOOKUP,
            ended_listed_seconds=ENDED_KEPT_SECONDS,
            listing_lag_seconds=LISTING_LAG_SECONDS,
            shares_files=True,
        )

    @property
    def account(self) -> str | None:
        """The cluster, by the configuration that its commands read."""
        return self._context.environment.get("SLURM_CONF") or "the default configuration"

    @property
    def work_directory(self) -> str:
        prefix = self._context.work_directory_prefix
        if prefix:
            return str(Path(prefix).expanduser().absolute() / KEY)
        return self._launches.work_directory

    def check(self) -> list[Finding]:
        key = LaunchKey.make(self._context.pool, 1)
        mark = Mark(self._context.owner or "0" * 16, self._context.pool, key, 1)
        request = LaunchRequest(key, (), self._options.resources)
        # Nothing of a launch is there yet, and a test of a submission needs no script.
        words = submission(Path("/"), mark, request, self._options)[:-1]
        return findings(self._cluster, self._options, self._launches.directory, words)

    # Launch

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        results: dict[LaunchKey, LaunchResult] = {}
        wanted = []
        for request in requests:
            if request.key.pool != self._context.pool:
                results[request.key] = Invalid(
                    f"{request.key} is not a key of the pool {self._context.pool}"
                )
            else:
                wanted.append(request)
        if dry_run:
            for row in rows(wanted, self._cluster.known.array_size):
                results |= dict.fromkeys((r.key for r in row), self._preview(row))
        else:
            results |= self._launch(wanted)
            # Room is made where it is used up, so that a list never changes anything.
            with suppress(OSError):
                self._tidy()
        return [results[request.key] for request in requests]

    def _launch(self, requests: Sequence[LaunchRequest]) -> dict[LaunchKey, LaunchResult]:
        try:
            longest = self._cluster.configuration().array_size
            before = self._read()
        except BackendError as error:
            return dict.fromkeys((request.key for request in requests), error)
        results: dict[LaunchKey, LaunchResult] = {}
        known: dict[LaunchKey, Launch] = {}
        for request in requests:
            for launch in before:
                if request.key in launch:
                    known[request.key] = launch
        if known:
            results |= self._again(known)
        for row in rows([request for request in requests if request.key not in known], longest):
            results |= self._launch_row(row)
        return results

    def _again(self, known: dict[LaunchKey, Launch]) -> dict[LaunchKey, LaunchResult]:
        """The jobs of keys that were meant before. Nothing is submitted."""
        try:
            jobs = {listed.key: listed for listed in self.list_jobs()}
        except BackendError as error:
            return dict.fromkeys(known, error)
        results: dict[LaunchKey, LaunchResult] = {}
        for key, launch in known.items():
            found = jobs.get(key)
            results[key] = found or Unreachable(
                f"{key} was submitted before and Slurm does not list it: "
                f"it is not submitted again; see {launch.place}"
            )
        return results

    def _launch_row(self, row: Sequence[LaunchRequest]) -> dict[LaunchKey, LaunchResult]:
        """One array for keys that were never meant before."""
        mark, request = self._mark(row), row[0]
        try:
            words = submission(self._launches.place(mark.first), mark, request, self._options)
            launch = self._launches.intend(
                mark,
                words,
                self._script(mark, request),
                secrets_text(request),
                job_name=self._options.job_name,
                intended=self._clock(),
            )
            try:
                array = self._cluster.submit(words)
            except LostReply as error:
                array = self._look_for(launch, error)
            except BackendError:
                self._launches.forget(launch)
                raise
        except BackendError as error:
            return dict.fromkeys((r.key for r in row), error)
        except OSError as error:
            failure = _file_error(error)
            return dict.fromkeys((r.key for r in row), failure)
        # The array is there, whatever happens to our note of it: its comment tells the rest.
        with suppress(OSError):
            self._launches.learn(launch, array)
        now = self._clock()
        return {
            r.key: job(Element(array, index, "PENDING", submitted=now), r.key, Evidence())
            for index, r in enumerate(row)
        }

    def _look_for(self, launch: Launch, lost: LostReply) -> int:
        """The array of a submission whose reply was lost. Raises Unreachable when none is found:
        the controller may still come to it."""
        with suppress(BackendError):
            for element, mark in self._our_queue([]):
                if mark == launch.mark:
                    return element.array
        raise Unreachable(f"{lost}; {launch.mark.first} may or may not have been taken")

    def _mark(self, row: Sequence[LaunchRequest]) -> Mark:
        return Mark(self._context.owner, self._context.pool, row[0].key, len(row))

    def _script(self, mark: Mark, request: LaunchRequest) -> str:
        return script(
            self._launches.place(mark.first),
            mark,
            request,
            removes=None if self._context.work_directory_prefix else f"{WORK}/{{}}",
            signals_all=self._cluster.known.signals_all,
        )

    def _preview(self, row: Sequence[LaunchRequest]) -> Preview:
        mark = self._mark(row)
        place = self._launches.place(mark.first)
        words = submission(place, mark, row[0], self._options)
        return Preview(preview(words, self._script(mark, row[0])))

    # List

    def list_jobs(self) -> list[Job]:
        # Before the queue is asked: whatever the controller does not know then is gone for good.
        launches = self._read()
        by_first = {launch.mark.first: launch for launch in launches}
        evidence = self._evidence(launches)
        jobs: list[Job] = []
        seen: set[LaunchKey] = set()
        without_code: list[tuple[Element, LaunchKey]] = []
        for element, mark in self._our_queue(launches):
            key = mark.key(element.index)
            seen.add(key)
            if not has_ended(element.state):
                self._ended.pop(key, None)  # somebody had it requeued
            if key in self._ended and self._ended[key].id == element.id:
                jobs.append(self._ended[key])
                continue
            left = evidence.get(mark.first, {}).get(element.index, Evidence())
            if element.state == "FAILED" and left.exit_code is None:
                without_code.append((element, key))
                continue
            found = job(element, key, left)
            if has_ended(element.state) and mark.first in by_first:
                self._ended[key] = found
            jobs.append(found)
        jobs += self._failed(without_code)
        jobs += self._gone(launches, evidence, seen)
        self._listed = jobs
        return jobs

    def _our_queue(self, launches: Sequence[Launch]) -> list[tuple[Element, Mark]]:
        """The elements that carry our mark and pool, or are of arrays that sbatch named to us, but
        for those that never were jobs."""
        if not self._context.owner:
            return []
        submitted = {
            launch.array: (launch.job_name, launch.mark)
            for launch in launches
            if launch.array is not None
        }
        return [
            (element, mark)
            for element, mark in self._cluster.queue(submitted)
            if (mark.owner, mark.pool) == (self._context.owner, self._context.pool)
            and not was_refused(element)
        ]

    def _failed(self, elements: Sequence[tuple[Element, LaunchKey]]) -> list[Job]:
        """Elements that failed and left no word: the controller saw how their script ended."""
        if not elements:
            return []
        codes: dict[str, int] = {}
        with suppress(BackendError):
            codes = self._cluster.exit_codes(element for element, _ in elements)
        jobs = []
        for element, key in elements:
            found = job(replace(element, exit_code=codes.get(element.id)), key, Evidence())
            if element.id in codes:
                self._ended[key] = found
            jobs.append(found)
        return jobs

    def _gone(
        self,
        launches: Sequence[Launch],
        evidence: dict[LaunchKey, dict[int, Evidence]],
        seen: set[LaunchKey],
    ) -> list[Job]:
        """The elements that were launched and that the controller does not know any more."""
        jobs: list[Job] = []
        unknown: dict[int, list[tuple[Launch, int]]] = {}
        for launch in launches:
            if launch.array is None:
                continue
            for index in range(launch.mark.number):
                key = launch.mark.key(index)
                if key in seen:
                    continue
                if key in self._ended:
                    jobs.append(self._ended[key])
                    continue
                left = evidence[launch.mark.first].get(index, Evidence())
                if left.exit_code is None and not (left.was_asked and left.started is None):
                    unknown.setdefault(launch.array, []).append((launch, index))
                    continue
                found = gone_job(launch.array, index, key, left, launch.intended)
                self._ended[key] = found
                jobs.append(found)
        if unknown:
            jobs += self._remembered(unknown, evidence)
        return jobs

    def _remembered(
        self,
        unknown: dict[int, list[tuple[Launch, int]]],
        evidence: dict[LaunchKey, dict[int, Evidence]],
    ) -> list[Job]:
        """Elements that are gone and left no word: accounting may remember them."""
        names = {array: pairs[0][0].job_name for array, pairs in unknown.items()}
        history = self._cluster.history(names)
        told = {(element.array, element.index): element for element in history or ()}
        jobs = []
        for array, pairs in unknown.items():
            for launch, index in pairs:
                key = launch.mark.key(index)
                left = evidence[launch.mark.first].get(index, Evidence())
                element = told.get((array, index))
                if element is not None and has_ended(element.state):
                    found = job(element, key, left)
                else:
                    found = gone_job(array, index, key, left, launch.intended)
                if history is not None:
                    self._ended[key] = found
                jobs.append(found)
        return jobs

    def _read(self) -> list[Launch]:
        try:
            return self._launches.read(self._context.owner, self._context.pool)
        except OSError as error:
            raise _file_error(error) from error

    def _evidence(self, launches: Sequence[Launch]) -> dict[LaunchKey, dict[int, Evidence]]:
        """What every launch that has not ended whole has left."""
        found = {}
        for launch in launches:
            keys = (launch.mark.key(index) for index in range(launch.mark.number))
            if all(key in self._ended for key in keys):
                found[launch.mark.first] = dict[int, Evidence]()
                continue
            try:
                found[launch.mark.first] = launch.evidence()
            except FileNotFoundError:
                found[launch.mark.first] = {}
            except OSError as error:
                raise _file_error(error) from error
        return found

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        try:
            launches = self._read()
            queue = {element.id: (element, mark) for element, mark in self._our_queue(launches)}
        except BackendError as error:
            return dict.fromkeys(job_ids, error)
        by_first = {launch.mark.first: launch for launch in launches}
        arrays = {launch.array: launch for launch in launches if launch.array is not None}
        living, strange = [], []
        for job_id in job_ids:
            place = parse_id(job_id)
            if place is None:
                results[job_id] = Invalid(f"{job_id!r} is no job: write ARRAY_INDEX")
            elif job_id in queue:
                element, mark = queue[job_id]
                results[job_id] = None
                if not has_ended(element.state):
                    living.append(job_id)
                    launch = by_first.get(mark.first)
                    if launch is not None:
                        with suppress(OSError):
                            self._launches.ask_to_end(launch, element.index)
            elif place[0] in arrays and place[1] < arrays[place[0]].mark.number:
                results[job_id] = None
            else:
                strange.append(job_id)
        results |= self._cluster.cancel(living)
        if strange:
            results |= self._refuse(strange)
        with suppress(OSError):
            self._tidy()
        return {job_id: results[job_id] for job_id in job_ids}

    def _refuse(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        """Jobs that are somebody else's are; any other is gone."""
        try:
            existing = self._cluster.exists(job_ids)
        except BackendError as error:
            return dict.fromkeys(job_ids, error)
        return {
            job_id: Invalid(f"{job_id} is not a job of the pool {self._context.pool}")
            if job_id in existing
            else None
            for job_id in job_ids
        }

    # Logs

    def logs(self, job_id: str) -> str:
        place = parse_id(job_id)
        for launch in self._read():
            if place and launch.array == place[0] and place[1] < launch.mark.number:
                try:
                    return launch.log(place[1])
                except OSError as error:
                    raise _file_error(error) from error
        raise Invalid(f"there is no job {job_id} in the pool {self._context.pool}")

    def _tidy(self) -> None:
        """Forget launches that ended whole long ago, and the secrets of all that ended whole, as
        the last list had them."""
        if self._listed is None:
            return
        by_key = {listed.key: listed for listed in self._listed}
        now = self._clock()
        kept = 0
        for launch in reversed(self._launches.read(self._context.owner, self._context.pool)):
            keys = [launch.mark.key(index) for index in range(launch.mark.number)]
            jobs = [by_key[key] for key in keys if key in by_key]
            if launch.array is None and not jobs:
                if now - launch.intended > ENDED_KEPT_SECONDS:
                    self._launches.forget(launch)
                continue
            if len(jobs) < len(keys) or any(j.state is not JobState.ENDED for j in jobs):
                continue
            self._launches.forget_secrets(launch)
            kept += len(keys)
            age = now - max(j.ended or launch.intended for j in jobs)
            old = age > ENDED_KEPT_SECONDS or kept > ENDED_KEPT
            if old and age > ENDED_KEPT_AT_LEAST_SECONDS:
                self._launches.forget(launch)
                for key in keys:
                    self._ended.pop(key, None)


def _file_error(error: OSError) -> BackendError:
    """The error of the taxonomy for what went wrong with our own files."""
    sentence = f"the launches cannot be kept: {error.strerror or error}"
    if error.filename:
        sentence += f" ({error.filename}): see --slurm-work-dir and --home"
    if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        return OutOfCapacity(sentence)
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(sentence)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unauthorized(sentence)
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
        return Invalid(sentence)
    return Unreachable(sentence)
