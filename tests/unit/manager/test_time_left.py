"""The manager and the server agree on whether a worker lives long enough for a bundle: else one
would wait for the other, and the bundle for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bundles.model import Resources
from bundles.server.scheduler import Need, Offer, Scheduler, Waiting
from manager.capacity import Offer as Room
from manager.observe import _offer
from manager.policy import PoolConfig, decide
from manager.queue import START_SECONDS, QueueConfig
from manager.snapshot import Snapshot
from manager.staged import demand_of

GIB = 1024**3
LATEST_SECONDS = START_SECONDS - 1
"""After its start a worker is given its first bundle."""
START_UP_SECONDS = 90.0
IDLE_SECONDS = 600.0
STEP_SECONDS = 10.0

lives = st.floats(60.0, 20_000.0)
times = st.floats(0.0, 20_000.0)


def queue_of(life_seconds: float, cpus: int = 2) -> QueueConfig:
    """As QueueConfig.from_settings makes it."""
    first = life_seconds - min(START_SECONDS, life_seconds / 4)
    return QueueConfig(cpus, 0, 8 * GIB, lifetime_seconds=first)


def server_gives(time_seconds: float, end: float, now: float) -> bool:
    scheduler = Scheduler()
    scheduler.offer(Offer("w", cpus=2, memory_bytes=8 * GIB, end=end))
    asked = Resources(time_seconds=time_seconds)
    scheduler.add(Waiting("b", 1, Need("u", time_seconds=asked.worker_seconds)))
    return bool(scheduler.match(now))


@settings(deadline=None)
@given(lives, times, st.lists(lives, max_size=2))
def test_what_the_manager_launches_a_worker_for_a_new_worker_gets(
    life: float, time: float, others: list[float]
) -> None:
    queues = [queue_of(life), *map(queue_of, others)]
    demand, _ = demand_of([(Resources(time_seconds=time), 1)], queues)
    first = min(LATEST_SECONDS, life / 4)
    if any(queues[0].shape.takes(need) for need in demand):
        assert server_gives(time, end=life, now=first)
    else:  # and that is no bundle that would have had the time
        usable = queues[0].shape.room.time_seconds
        assert Resources(time_seconds=time).worker_seconds > usable


@settings(deadline=None)
@given(lives, times, st.floats(0.0, 1.0))
def test_where_the_manager_sees_room_the_server_gives_the_bundle(
    life: float, time: float, part: float
) -> None:
    queue = queue_of(life)
    now = life * part
    worker = {
        "cpus": 2, "gpus": 0, "memory_bytes": 8 * GIB, "free_disk_bytes": GIB,
        "cpus_in_use": 0, "gpus_in_use": 0, "memory_bytes_in_use": 0, "seconds_left": life - now,
    }  # fmt: skip
    offer = _offer(worker, queue.shape.room.time_seconds)
    demand, _ = demand_of([(Resources(time_seconds=time), 1)], [queue])
    if offer is not None and any(offer.takes(need) for need in demand):
        # Of what is left a part of a second is lost in the sum.
        assert server_gives(time, end=life + 1e-6, now=now)


@dataclass
class Bundle:
    asked: Resources
    lasts_seconds: float


@dataclass
class Worker:
    name: str
    launched: float
    running: dict[str, float] = field(default_factory=dict)
    """When each bundle ends."""
    idle_since: float = math.inf

    @property
    def start(self) -> float:
        return self.launched + START_UP_SECONDS


@dataclass
class World:
    """One pool of workers with an end, a server, and a decision every few seconds."""

    life_seconds: float
    most: int
    bundles: dict[str, Bundle]
    now: float = 0.0
    launches: int = 0
    workers: dict[str, Worker] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    scheduler: Scheduler = field(default_factory=Scheduler)

    def __post_init__(self) -> None:
        self.queue = queue_of(self.life_seconds)
        self.config = PoolConfig(self.queue.shape, 0, self.most)
        for name in self.bundles:
            self.stage(name)

    def stage(self, name: str) -> None:
        self.staged.add(name)
        order = list(self.bundles).index(name)
        self.scheduler.add(Waiting(name, order, self.need(name)))

    def need(self, name: str) -> Need:
        asked = self.bundles[name].asked
        return Need("u", asked.cpus, time_seconds=asked.worker_seconds)

    def step(self) -> None:
        self.now += STEP_SECONDS
        for worker in list(self.workers.values()):
            self.live(worker)
        for name, worker_id in self.scheduler.match(self.now):
            self.staged.discard(name)
            ends = self.now + self.bundles[name].lasts_seconds
            self.workers[worker_id].running[name] = ends
        self.decide()

    def live(self, worker: Worker) -> None:
        if self.now < worker.start:
            return
        if worker.idle_since == math.inf:
            worker.idle_since = self.now
            end = worker.start + self.life_seconds
            self.scheduler.offer(Offer(worker.name, cpus=2, memory_bytes=8 * GIB, end=end))
        for name, ends in list(worker.running.items()):
            if ends <= self.now:
                del worker.running[name]
                self.done.add(name)
                self.scheduler.release(worker.name, name)
        if worker.running:
            worker.idle_since = self.now
        is_over = self.now >= worker.start + self.life_seconds
        if is_over or self.now - worker.idle_since > IDLE_SECONDS:
            del self.workers[worker.name]
            self.scheduler.withdraw(worker.name)
            self.cut |= set(worker.running)
            for name in worker.running:
                self.stage(name)

    def decide(self) -> None:
        asked = [(self.bundles[name].asked, 1) for name in sorted(self.staged)]
        demand, unfit = demand_of(asked, [self.queue])
        come = [worker for worker in self.workers.values() if worker.idle_since < math.inf]
        free: dict[Room, int] = {}
        for worker in come:
            offer = _offer(self.described(worker), self.queue.shape.room.time_seconds)
            if offer is not None:
                free[offer] = free.get(offer, 0) + 1
        pending = len(self.workers) - len(come)
        snapshot = Snapshot(demand, unfit[0], pending, len(come), free=free)
        for _ in range(decide(snapshot, self.config, self.now).launch):
            self.launches += 1
            name = f"w{self.launches}"
            self.workers[name] = Worker(name, self.now)

    def described(self, worker: Worker) -> dict[str, object]:
        cpus_in_use, _, _ = self.scheduler.in_use(worker.name)
        return {
            "cpus": 2, "gpus": 0, "memory_bytes": 8 * GIB, "free_disk_bytes": GIB,
            "cpus_in_use": cpus_in_use, "gpus_in_use": 0, "memory_bytes_in_use": 0,
            "seconds_left": max(0.0, worker.start + self.life_seconds - self.now),
        }  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    life = draw(st.floats(600.0, 4000.0))
    longest = queue_of(life).shape.room.time_seconds // 60 * 60
    bundles = {}
    for number in range(draw(st.integers(1, 8))):
        cpus = draw(st.integers(1, 2))
        asked = draw(st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.9])) * longest
        # What says nothing may take some time, too.
        lasts = draw(st.floats(0.0, 1.0)) * (asked or longest / 2)
        bundles[f"b{number}"] = Bundle(Resources(cpus, time_seconds=asked), lasts)
    return World(life, draw(st.integers(1, 3)), bundles)


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_every_bundle_that_a_worker_could_hold_is_done_and_none_is_cut_that_said_its_time(
    world: World,
) -> None:
    longest = len(world.bundles) * 3 * (world.life_seconds + START_UP_SECONDS + IDLE_SECONDS)
    while len(world.done) < len(world.bundles):
        world.step()
        assert world.now < longest, (world.staged, world.launches)
    assert not [name for name in world.cut if world.bundles[name].asked.time_seconds]
    assert world.launches <= 3 * len(world.bundles)


def test_bundles_whose_times_differ_a_little_are_of_one_kind_and_plain_times_are_exact() -> None:
    plain = [0, 10, 30, 600, 900, 3600, 5400, 5 * 3600, 12 * 3600, 48 * 3600, 10 * 86400]
    assert [Resources(time_seconds=one).worker_seconds for one in plain] == plain
    day = {Resources(time_seconds=second).worker_seconds for second in range(86400)}
    assert len(day) < 500


@settings(deadline=None)
@given(st.integers(0, 10**7))
def test_no_bundle_is_taken_to_need_less_time_than_it_asks_for(time: int) -> None:
    assert time <= Resources(time_seconds=time).worker_seconds <= time * 1.1 + 10
