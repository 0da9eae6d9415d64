"""Scale: what a thousand workers cost, counted in calls to the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import ceil

from backends.conformance.harness import Circumstance, Harness
from backends.conformance.stand import Case, Stand, jobs_of, needs

CONSTANT_CALLS = 10
"""What a verb may ask besides, however many jobs there are: one list for each state, a token."""


class Scale(Case):
    """Every test counts calls; jobs wait meanwhile, where they can be made to."""

    def test_listing_a_thousand_takes_a_call_for_each_hundred(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.COUNTED)
        number = stand.harness.listed_at_scale
        with held_if_possible(stand.harness):
            requests = stand.requests(number)
            stand.harness.fill(stand.backend, requests)
            stand.listed(request.key for request in requests)
            before = stand.harness.calls()
            jobs = stand.backend.list_jobs()
            calls = stand.harness.calls() - before
            assert {job.key for job in jobs} == {request.key for request in requests}
            assert len(jobs) == number
            assert calls <= ceil(number / 100) + CONSTANT_CALLS

    def test_launching_a_thousand_takes_the_calls_that_were_promised(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.COUNTED)
        number = stand.harness.launched_at_scale
        promised = ceil(number / stand.backend.capabilities.launches_per_call)
        with held_if_possible(stand.harness):
            requests = stand.requests(number)
            before = stand.harness.calls()
            jobs = jobs_of(stand.backend.launch(requests))
            calls = stand.harness.calls() - before
            assert len({job.id for job in jobs}) == number
            assert calls <= promised * stand.harness.calls_per_launch + CONSTANT_CALLS
            assert set(stand.listed(job.key for job in jobs)) == {job.key for job in jobs}


@contextmanager
def held_if_possible(harness: Harness) -> Iterator[None]:
    with ExitStack() as stack:
        if Circumstance.HELD not in harness.impossible:
            stack.enter_context(harness.during(Circumstance.HELD))
        yield
