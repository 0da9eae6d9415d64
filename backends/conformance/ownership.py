"""Ownership: only jobs of this installation and pool are listed, read and ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import Invalid, JobState
from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand


class Ownership(Case):
    """Every test has neighbours on the same service that are easily mistaken for ours."""

    def test_the_service_s_other_jobs_are_neither_listed_nor_ended(self, stand: Stand) -> None:
        job = stand.run_one()
        neighbours = stand.harness.plant_neighbours(stand.context)
        _keeps_to_itself(stand, job.id, neighbours)
        for neighbour in neighbours:
            assert stand.harness.is_untouched(neighbour), neighbour

    @pytest.mark.parametrize(
        "pool", ["Conformance", "conformance-1", "conformance_1", "conformanc", "other"]
    )
    def test_jobs_of_our_other_pools_are_theirs(
        self, stand: Stand, tmp_path: Path, pool: str
    ) -> None:
        _leave_each_other_alone(stand, stand.beside(tmp_path / "other", pool=pool))

    @pytest.mark.parametrize("turn", [1, 8, 15])
    def test_jobs_of_other_managers_of_a_pool_of_the_same_name_are_theirs(
        self, stand: Stand, tmp_path: Path, turn: int
    ) -> None:
        """Their mark differs from ours in one digit."""
        mark = list(stand.context.owner)
        mark[turn] = "0" if mark[turn] != "0" else "f"
        _leave_each_other_alone(stand, stand.beside(tmp_path / "other", owner="".join(mark)))

    def test_a_manager_that_starts_again_finds_everything(self, stand: Stand) -> None:
        active, ended = stand.launch(2)
        stand.start([active, ended])
        stand.harness.finish(ended, 3)
        stand.until_over(ended)
        again = stand.restarted()
        assert again.backend.list_jobs() == stand.backend.list_jobs()
        assert again.job(active.key).state is JobState.ACTIVE
        assert again.backend.terminate([active.id]) == {active.id: None}
        again.until_over(active)


def _leave_each_other_alone(ours: Stand, theirs: Stand) -> None:
    our_job, their_job = ours.run_one(), theirs.run_one()
    _keeps_to_itself(ours, our_job.id, [their_job.id])
    _keeps_to_itself(theirs, their_job.id, [our_job.id])
    assert theirs.job(their_job.key).state is JobState.ACTIVE
    # Once it has ended there is still nothing to be said to a stranger.
    assert theirs.backend.terminate([their_job.id]) == {their_job.id: None}
    theirs.until_over(their_job)
    assert [job.id for job in ours.backend.list_jobs()] == [our_job.id]
    assert ours.job(our_job.key).state is JobState.ACTIVE


def _keeps_to_itself(stand: Stand, own: str, others: list[str]) -> None:
    assert [job.id for job in stand.backend.list_jobs()] == [own]
    for other in others:
        (error,) = stand.backend.terminate([other]).values()
        is_gone_to_us = error is None and Circumstance.SHARED in stand.harness.impossible
        assert is_gone_to_us or isinstance(error, Invalid), f"{other}: {error!r}"
        with pytest.raises(Invalid):
            stand.backend.logs(other)
    assert [job.id for job in stand.backend.list_jobs()] == [own]
