from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from worker.locks import GaveUp, Locks

NEVER = threading.Event()


def locks(tmp_path: Path, *, silence_seconds: float = 0.3) -> Locks:
    return Locks(tmp_path, silence_seconds=silence_seconds)


def of_another_machine(tmp_path: Path, name: str) -> Path:
    """Held on a machine whose flock does not reach this one."""
    path = tmp_path / name
    path.write_text("another-boot 0123")
    return path


def test_one_holds_it_and_the_others_do_not(tmp_path: Path) -> None:
    one, two = locks(tmp_path), locks(tmp_path)
    with one.trying("x") as lock:
        assert lock is not None
        assert lock.is_ours()
        with two.trying("x") as other, two.looking("x") as is_free, two.trying("y") as free:
            assert (other, is_free) == (None, False)
            assert free is not None
    with two.trying("x") as lock, one.looking("y") as is_free:
        assert lock is not None
        assert is_free


def test_a_look_keeps_others_from_taking_it(tmp_path: Path) -> None:
    with locks(tmp_path).looking("x") as is_free, locks(tmp_path).trying("x") as lock:
        assert is_free
        assert lock is None


def test_the_lock_of_a_dead_process_of_this_machine_is_free(tmp_path: Path) -> None:
    with locks(tmp_path).trying("x") as lock:
        assert lock is not None
        left = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(left)  # as a SIGKILL leaves it
    with locks(tmp_path).looking("x") as is_free:
        assert is_free
    with locks(tmp_path).trying("x") as lock:
        assert lock is not None


def test_who_waits_gets_it_when_it_is_let_go(tmp_path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with locks(tmp_path, silence_seconds=60).holding("x", NEVER):
            got.set()

    with locks(tmp_path).trying("x"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.2)
    waiting.join(30)
    assert got.is_set()


def test_a_holder_that_shows_life_keeps_it(tmp_path: Path) -> None:
    cancelled = threading.Event()
    with locks(tmp_path).trying("x") as lock:
        assert lock is not None
        timer = threading.Timer(1.0, cancelled.set)
        timer.start()
        with pytest.raises(GaveUp), locks(tmp_path).holding("x", cancelled):
            pass
        assert lock.is_ours()
        timer.join()


def test_a_holder_that_is_silent_loses_it_whatever_machine_it_is_on(tmp_path: Path) -> None:
    of_another_machine(tmp_path, "far")
    near = os.open(tmp_path / "near", os.O_RDWR | os.O_CREAT)
    fcntl.flock(near, fcntl.LOCK_EX)
    for name in ("far", "near"):
        with locks(tmp_path).trying(name) as lock:
            assert lock is None
        with locks(tmp_path).holding(name, NEVER) as lock:
            assert lock.is_ours()
            with locks(tmp_path).trying(name) as other:
                assert other is None
    os.close(near)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "near"]


def test_who_lost_it_knows_and_takes_nothing_from_the_next(tmp_path: Path) -> None:
    with locks(tmp_path, silence_seconds=1e6).trying("x") as lost:
        assert lost is not None
        lost.is_spent = True
        with locks(tmp_path).holding("x", NEVER) as lock:
            assert not lost.is_ours()
            lost.release()
            lost.release = lambda: None  # type: ignore[method-assign]
            assert lock.is_ours()


def test_a_spent_lock_leaves_no_file(tmp_path: Path) -> None:
    with locks(tmp_path).trying("x") as lock:
        assert lock is not None
        lock.is_spent = True
    assert list(tmp_path.iterdir()) == []
