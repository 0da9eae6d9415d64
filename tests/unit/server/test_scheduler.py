from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles.server.scheduler import Match, Need, Offer, Scheduler, Waiting

GIB = 1024**3
HOUR = 3600


def waiting(uuid: str, order: int = 1, priority: float = 0, **need: Any) -> Waiting:
    parents = need.pop("parents", frozenset())
    need = {"owner_id": "u", "memory_bytes": GIB, **need}
    return Waiting(uuid, order, Need(**need), priority, parents)


def offer(worker_id: str, **more: Any) -> Offer:
    return Offer(
        **{"worker_id": worker_id, "cpus": 2, "memory_bytes": 4 * GIB, "disk_bytes": GIB, **more}
    )


def scheduler(*workers: Offer, bundles: tuple[Waiting, ...] = ()) -> Scheduler:
    made = Scheduler()
    for worker in workers:
        made.offer(worker)
    for bundle in bundles:
        made.add(bundle)
    return made


def test_a_higher_priority_goes_first_then_the_older_bundle() -> None:
    made = scheduler(
        bundles=(waiting("old", 1), waiting("new", 2), waiting("urgent", 3, priority=5)),
    )
    made.offer(offer("w", cpus=1))
    assert made.match() == [Match("urgent", "w")]
    made.release("w", "urgent")
    assert made.match() == [Match("old", "w")]


def test_a_bundle_without_priority_goes_between_0_and_negative_ones() -> None:
    bundles = (
        waiting("low", 1, priority=-1),
        waiting("none", 2, priority=-0.5),
        waiting("zero", 3),
    )
    made = scheduler(offer("w", cpus=3), bundles=bundles)
    assert [match.uuid for match in made.match()] == ["zero", "none", "low"]


def test_users_take_turns_however_many_bundles_one_of_them_has() -> None:
    bundles = [waiting(f"a{i}", i, owner_id="a") for i in range(10)]
    bundles += [waiting(f"b{i}", 10 + i, owner_id="b") for i in range(2)]
    made = scheduler(offer("w", cpus=4), bundles=tuple(bundles))
    assert [match.uuid for match in made.match()] == ["a0", "b0", "a1", "b1"]


def test_the_user_with_the_fewest_running_goes_first() -> None:
    made = scheduler(offer("w", cpus=3))
    made.occupy("w", "running", waiting("running", owner_id="a").need)
    for order, owner in enumerate("aabb"):
        made.add(waiting(f"{owner}{order}", order, owner_id=owner))
    assert [match.uuid for match in made.match()] == ["b2", "a0"]


def test_a_bundle_that_fits_is_not_hidden_by_those_that_do_not() -> None:
    many = tuple(waiting(f"big{i}", i, cpus=64, priority=9) for i in range(50))
    made = scheduler(offer("w"), bundles=(*many, waiting("small", 99)))
    assert made.match() == [Match("small", "w")]


def test_ten_thousand_shapes_that_fit_nowhere_do_not_slow_a_match() -> None:
    made = scheduler(
        offer("w"), bundles=tuple(waiting(f"b{i}", i, cpus=3 + i) for i in range(10_000))
    )
    assert made.match() == []
    start = time.process_time()
    for i in range(100):
        made.add(waiting(f"new{i}", 20_000 + i))
        assert made.match() == [Match(f"new{i}", "w")]
        made.release("w", f"new{i}")
        assert made.match() == []
    assert (time.process_time() - start) / 100 < 0.1


def test_room_is_what_the_bundles_of_a_worker_leave_of_it() -> None:
    bundles = (waiting("a", 1, memory_bytes=3 * GIB), waiting("b", 2, memory_bytes=3 * GIB))
    made = scheduler(offer("w"), bundles=bundles)
    assert made.match() == [Match("a", "w")]
    made.release("w", "a")
    assert made.match() == [Match("b", "w")]


def test_gpus_and_disk_are_counted_too() -> None:
    bundles = (waiting("gpu", 1, gpus=1), waiting("disk", 2, disk_bytes=2 * GIB))
    made = scheduler(offer("w"), bundles=bundles)
    assert made.match() == []
    made.offer(offer("g", gpus=1, disk_bytes=4 * GIB))
    assert {match.uuid for match in made.match()} == {"gpu", "disk"}


def test_a_queue_is_for_workers_of_that_tag_and_an_exclusive_worker_for_its_queue() -> None:
    bundles = (waiting("q", 1, queue="fast"), waiting("plain", 2))
    made = scheduler(offer("exclusive", tag="fast", tag_exclusive=True), bundles=bundles)
    assert made.match() == [Match("q", "exclusive")]
    made.offer(offer("open", tag="fast"))
    assert made.match() == [Match("plain", "open")]


def test_an_exclusive_worker_is_preferred_for_its_queue() -> None:
    made = scheduler(
        offer("a-open", tag="fast"), offer("exclusive", tag="fast", tag_exclusive=True)
    )
    made.add(waiting("q", queue="fast"))
    assert made.match() == [Match("q", "exclusive")]


def test_workers_with_gpus_are_kept_for_those_who_ask() -> None:
    made = scheduler(offer("a-gpu", gpus=1), offer("plain"))
    made.add(waiting("b"))
    assert made.match() == [Match("b", "plain")]


def test_the_worker_that_has_the_dependencies_is_preferred() -> None:
    made = scheduler(offer("a"), offer("z", cached=frozenset({("0x1", "")})))
    made.add(waiting("b", parents=frozenset({("0x1", ""), ("0x2", "")})))
    assert made.match() == [Match("b", "z")]


def test_the_tightest_fit_is_taken_so_that_large_workers_stay_free() -> None:
    made = scheduler(offer("a-large", cpus=16), offer("small", cpus=2))
    made.add(waiting("b", cpus=2))
    assert made.match() == [Match("b", "small")]


def test_a_worker_takes_only_the_bundles_of_those_it_serves() -> None:
    bundles = (waiting("mine", 2, owner_id="me"), waiting("other", 1, owner_id="you"))
    made = scheduler(offer("w", serves=frozenset({"me"})), bundles=bundles)
    assert made.match() == [Match("mine", "w")]


def test_a_worker_takes_no_more_runs_than_it_has_left() -> None:
    made = scheduler(offer("w", runs_left=1), bundles=(waiting("a", 1), waiting("b", 2)))
    assert made.match() == [Match("a", "w")]
    made.release("w", "a")
    assert made.match() == []
    made.offer(offer("w", runs_left=0))
    assert made.match() == []
    made.offer(offer("w", runs_left=1))
    assert made.match() == [Match("b", "w")]


def test_a_worker_that_is_terminating_gets_nothing() -> None:
    made = scheduler(offer("w", accepting=False), bundles=(waiting("a"),))
    assert made.match() == []
    made.offer(offer("w"))
    assert made.match() == [Match("a", "w")]


def test_a_bundle_that_was_removed_is_not_matched() -> None:
    made = scheduler(bundles=(waiting("a", 1), waiting("b", 2)))
    made.remove("a")
    made.offer(offer("w"))
    assert made.match() == [Match("b", "w")]


def test_a_worker_that_was_withdrawn_gets_nothing_and_its_users_count_no_more() -> None:
    made = scheduler(offer("w"))
    made.occupy("w", "x", waiting("x", owner_id="a").need)
    made.withdraw("w")
    made.add(waiting("a", 1, owner_id="a"))
    made.add(waiting("b", 2, owner_id="b"))
    assert made.match() == []
    made.offer(offer("v", cpus=1))
    assert made.match() == [Match("a", "v")]


def test_nothing_is_said_of_a_bundle_while_no_worker_is_known() -> None:
    made = scheduler(bundles=(waiting("a", cpus=64),))
    made.match()
    assert made.judge() == []


def test_a_bundle_that_can_never_run_is_told_so_once() -> None:
    made = scheduler(offer("w"), bundles=(waiting("a", cpus=64), waiting("b")))
    made.match()
    [(uuid, sentence)] = made.judge()
    assert uuid == "a"
    assert sentence is not None
    assert "64 cpus" in sentence
    assert "2" in sentence
    made.offer(offer("w", cached=frozenset({("0x1", "")})))
    made.offer(offer("v"))
    made.match()
    assert made.judge() == []
    assert made.verdict("a") == sentence


def test_the_sentence_is_taken_back_when_a_worker_comes_that_can_run_it() -> None:
    made = scheduler(offer("w"), bundles=(waiting("a", cpus=8),))
    made.match()
    assert made.judge()
    made.offer(offer("large", cpus=8))
    made.occupy("large", "x", waiting("x").need)
    made.match()
    assert made.judge() == [("a", None)]


def test_a_full_worker_is_no_reason_to_say_never() -> None:
    made = scheduler(offer("w", cpus=1), bundles=(waiting("a", 1), waiting("b", 2)))
    assert made.match() == [Match("a", "w")]
    assert made.judge() == []


def test_a_priority_that_is_lowered_counts() -> None:
    bundles = (waiting("a", 1, priority=5), waiting("b", 2, priority=4), waiting("c", 3))
    made = scheduler(bundles=bundles)
    made.remove("a")
    made.add(waiting("a", 1, priority=1))
    made.offer(offer("w", cpus=2))
    assert [match.uuid for match in made.match()] == ["b", "a"]


def test_a_deferred_bundle_goes_last_whoever_owns_it_and_takes_what_is_left() -> None:
    made = scheduler(
        bundles=(
            replace(waiting("late", 1, priority=9, owner_id="a"), is_deferred=True),
            waiting("low", 2, priority=-1, owner_id="b"),
            waiting("other", 3, owner_id="b"),
        )
    )
    made.offer(offer("w", cpus=3))
    assert [match.uuid for match in made.match()] == ["other", "low", "late"]


def test_a_bundle_that_is_to_be_alone_does_not_come_beside_another_nor_another_beside_it() -> None:
    made = scheduler(offer("w", cpus=4), bundles=(waiting("shared", 1),))
    assert made.match() == [Match("shared", "w")]
    made.add(replace(waiting("alone", 2, alone=True), is_deferred=True))
    assert made.match() == []
    made.release("w", "shared")
    assert made.match() == [Match("alone", "w")]
    assert made.in_use("w") == (4, 0, 4 * GIB), "there is room for nothing else"
    made.add(waiting("next", 3))
    assert made.match() == []
    made.release("w", "alone")
    assert made.match() == [Match("next", "w")]
    assert made.in_use("w") == (1, 0, GIB)


def test_a_worker_is_kept_for_a_bundle_that_is_to_be_alone_and_would_starve() -> None:
    made = scheduler(offer("v", cpus=3), offer("w"), bundles=())
    for order in range(5):
        made.add(waiting(f"{order}", order))
    on = {match.uuid: match.worker_id for match in made.match()}
    made.add(waiting("alone", 10, alone=True))
    assert made.match() == []
    # It is the one with the fewest bundles: nothing comes to it any more.
    first, second = [uuid for uuid, worker_id in on.items() if worker_id == "w"]
    made.add(waiting("more", 11))
    made.release("w", first)
    assert made.match() == []
    assert made.in_use("w") == (2, 0, 4 * GIB)
    made.release("w", second)
    assert made.match() == [Match("alone", "w")]


@pytest.mark.parametrize("how", ["removed", "deferred", "run elsewhere", "drained", "withdrawn"])
def test_a_worker_is_kept_no_longer_than_it_must_be(how: str) -> None:
    made = scheduler(offer("w"), bundles=(waiting("a", 1), waiting("b", 2)))
    assert len(made.match()) == 2
    made.add(waiting("alone", 3, alone=True))
    made.match()
    made.release("w", "a")
    made.add(waiting("next", 4))
    assert made.match() == []
    expected = [Match("next", "w")]
    if how == "removed":
        made.remove("alone")
    elif how == "deferred":
        made.remove("alone")
        made.add(replace(waiting("alone", 3, alone=True), is_deferred=True))
    elif how == "run elsewhere":
        made.offer(offer("z"))
        assert made.match() == [Match("alone", "z")]
    elif how == "drained":
        made.offer(offer("w", accepting=False))
        assert made.match() == []
        made.remove("alone")
        made.offer(offer("w"))
    elif how == "withdrawn":
        made.withdraw("w")
        made.offer(offer("w", cpus=1))
        expected = [Match("alone", "w")]
    assert made.match() == expected


needs = st.tuples(
    st.integers(0, 3), st.integers(0, 2), st.sampled_from(["", "x", "y"]), st.sampled_from("abc")
)
workers = st.tuples(st.integers(1, 4), st.integers(0, 2), st.sampled_from(["", "x"]), st.booleans())
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), needs),
        st.tuples(st.just("offer"), workers),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("withdraw"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(steps)
def test_after_a_match_no_waiting_bundle_fits_any_worker_and_none_is_overfull(
    script: list[tuple[str, Any]],
) -> None:
    made = Scheduler()
    offers: dict[str, Offer] = {}
    held: dict[str, dict[str, Need]] = {}
    queued: dict[str, Waiting] = {}
    for number, (kind, what) in enumerate(script):
        if kind == "add":
            cpus, gpus, queue, owner = what
            bundle = waiting(
                f"b{number}", number, cpus=cpus, gpus=gpus, queue=queue, owner_id=owner
            )
            queued[bundle.uuid] = bundle
            made.add(bundle)
        elif kind == "offer":
            cpus, gpus, tag, exclusive = what
            made_offer = offer(
                f"w{number % 6}", cpus=cpus, gpus=gpus, tag=tag, tag_exclusive=exclusive
            )
            offers[made_offer.worker_id] = made_offer
            held.setdefault(made_offer.worker_id, {})
            made.offer(made_offer)
        elif kind == "release" and any(held.values()):
            worker_id = sorted(w for w, has in held.items() if has)[0]
            uuid = sorted(held[worker_id])[what % len(held[worker_id])]
            del held[worker_id][uuid]
            made.release(worker_id, uuid)
        elif kind == "withdraw":
            held.pop(f"w{what}", None)
            offers.pop(f"w{what}", None)
            made.withdraw(f"w{what}")
        for match in made.match():
            bundle = queued.pop(match.uuid)
            held[match.worker_id][match.uuid] = bundle.need
            got = held[match.worker_id].values()
            assert sum(need.cpus for need in got) <= offers[match.worker_id].cpus
            assert sum(need.gpus for need in got) <= offers[match.worker_id].gpus
        for bundle in queued.values():
            for worker_id, one in offers.items():
                got = held[worker_id].values()
                need = bundle.need
                fits = (
                    need.cpus + sum(n.cpus for n in got) <= one.cpus
                    and need.gpus + sum(n.gpus for n in got) <= one.gpus
                    and need.memory_bytes + sum(n.memory_bytes for n in got) <= one.memory_bytes
                    and (
                        need.queue == one.tag if need.queue else not (one.tag_exclusive and one.tag)
                    )
                )
                assert not fits, (bundle, one)


# Workers that end


def test_a_bundle_that_says_how_long_it_takes_goes_to_a_worker_that_lives_so_long() -> None:
    made = scheduler(offer("short", end=2 * HOUR), offer("young", end=9 * HOUR))
    made.add(waiting("exact", 1, time_seconds=HOUR))
    made.add(waiting("long", 2, time_seconds=3 * HOUR))
    made.add(waiting("unsaid", 3))
    matches = dict(made.match(1.0 * HOUR))
    assert matches["exact"] == "short"
    assert matches["long"] == "young"
    assert matches["unsaid"] in ("short", "young")


def test_it_waits_while_every_worker_ends_sooner_and_goes_to_the_first_that_does_not() -> None:
    made = scheduler(offer("old", end=2 * HOUR))
    made.add(waiting("long", time_seconds=HOUR))
    assert made.match(1.0 * HOUR + 1) == []
    made.occupy("old", "x", Need("u"))
    made.release("old", "x")
    assert made.match(1.0 * HOUR + 2) == []
    made.offer(offer("new", end=3 * HOUR))
    assert made.match(1.0 * HOUR + 3) == [Match("long", "new")]


def test_one_whose_user_said_nothing_goes_to_any_worker_until_its_end() -> None:
    made = scheduler(offer("w", end=HOUR), bundles=(waiting("unsaid"),))
    assert made.match(2.0 * HOUR) == [Match("unsaid", "w")]


def test_that_no_worker_lives_long_enough_is_said_when_it_comes_to_be_true_and_as_long() -> None:
    made = scheduler(offer("w", end=2 * HOUR), bundles=(waiting("long", time_seconds=HOUR),))
    assert made.judge(0.0) == []
    assert made.judge(1.0 * HOUR) == []
    [(uuid, sentence)] = made.judge(1.0 * HOUR + 1)
    assert (uuid, sentence) == (
        "long",
        "No worker can run this: it asks for up to 1h00m of time, and all of them end sooner.",
    )
    assert made.judge(1.0 * HOUR + 2) == []
    made.offer(offer("new", end=3 * HOUR))
    assert made.judge(1.0 * HOUR + 3) == [("long", None)]


def test_no_worker_is_kept_for_a_bundle_that_it_would_not_outlive() -> None:
    made = scheduler(offer("w", cpus=2, end=2 * HOUR), bundles=(waiting("first", 1),))
    made.match(0.0)
    made.add(waiting("alone", 2, alone=True, time_seconds=HOUR))
    assert made.match(0.0) == []
    made.add(waiting("other", 3))
    assert made.match(1.0) == []  # it is kept for the one that is to be alone
    made.add(waiting("another", 4, cpus=2))
    made.release("w", "first")
    assert made.match(1.0 * HOUR + 1) == [Match("other", "w")]
