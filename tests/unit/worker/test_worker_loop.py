from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from worker.loop import Loop, Outcome, Pool


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def raise_it(error: Exception) -> None:
    raise error


def test_posts_from_threads_and_timers_are_called_in_order(loop: Loop) -> None:
    said: list[str] = []
    loop.call_later(0.02, lambda: (said.append("later"), loop.stop()))
    loop.call_later(0.01, lambda: said.append("sooner"))
    cancelled = loop.call_later(0.0, lambda: said.append("never"))
    cancelled.cancel()
    threading.Thread(target=loop.post, args=(lambda: said.append("posted"),)).start()
    loop.run(raise_it)
    assert said[-2:] == ["sooner", "later"]
    assert sorted(said) == ["later", "posted", "sooner"]


def test_what_a_callback_raises_is_told_and_the_rest_goes_on(loop: Loop) -> None:
    faults: list[Exception] = []
    loop.post(lambda: 1 / 0)
    loop.post(loop.stop)
    loop.run(faults.append)
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


def test_descriptors_and_signals_wake_it(loop: Loop) -> None:
    said: list[str] = []
    reading, writing = os.pipe()

    def heard() -> None:
        said.append(os.read(reading, 10).decode())
        os.kill(os.getpid(), signal.SIGUSR1)

    loop.watch(reading, heard)
    loop.on_signal(signal.SIGUSR1, lambda: (said.append("signal"), loop.stop()))
    os.write(writing, b"bytes")
    loop.run(raise_it)
    loop.unwatch(reading)
    os.close(reading)
    os.close(writing)
    assert said == ["bytes", "signal"]


def test_a_pool_does_jobs_in_threads_and_tells_what_they_came_to(loop: Loop) -> None:
    pool = Pool(loop, "jobs", 2)
    outcomes: list[Outcome[int]] = []

    def done(outcome: Outcome[int]) -> None:
        assert threading.current_thread() is threading.main_thread()
        outcomes.append(outcome)
        if len(outcomes) == 10:
            loop.stop()

    for number in range(10):
        pool.submit(lambda n=number: 10 // n, done)
    loop.run(raise_it)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert len(failed) == 1
    assert sorted(o.value for o in outcomes if o.error is None) == [
        10 // n for n in range(9, 0, -1)
    ]
    with pytest.raises(ZeroDivisionError):
        failed[0].value  # noqa: B018
