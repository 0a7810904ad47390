"""Turns on the cores: one at a time, in order, and whatever happens to who has one or waits."""

import signal
import threading
import time

import pytest

from kg.cores import Turns


def within(seconds, condition):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False


def test_never_two_at_once():
    turns, inside, most = Turns(), [], []

    def work():
        for _ in range(200):
            with turns.turn():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 1600
    assert max(most) == 1


def test_a_loop_of_steps_lets_others_in_between_and_goes_on():
    turns, order = Turns(), []

    def short():
        with turns.turn():
            order.append("short")

    with turns.turn():
        waiting = [threading.Thread(target=short) for _ in range(2)]
        for number, thread in enumerate(waiting, 1):
            thread.start()
            assert within(10, lambda number=number: len(turns._waiting) == number + 1)
        late = threading.Thread(target=short)
        order.append("step")
    with turns.turn():  # asked after the two, and before the late one
        late.start()
        assert within(10, lambda: len(turns._waiting) == 2)
        order.append("step")
    late.join(10)
    assert order == ["step", "short", "short", "step", "short"]


def test_work_that_needs_no_core_waits_for_nobody():
    turns = Turns()
    with turns.turn(), turns.turn(False):
        assert len(turns._waiting) == 1


def test_an_error_gives_the_turn_on():
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.turn():
        raise ValueError("broken")
    with turns.turn():
        pass
    assert not turns._waiting


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of POSIX here")
def test_who_is_interrupted_while_waiting_is_forgotten_and_nobody_is_let_in():
    turns, inside, done = Turns(), threading.Event(), threading.Event()
    got = []

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    def holds():
        with turns.turn():
            inside.set()
            done.wait(30)

    def other():
        with turns.turn():
            got.append("turn")

    holder, later = threading.Thread(target=holds), threading.Thread(target=other)
    holder.start()
    assert inside.wait(10)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(2):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Stop), turns.turn():
                got.append("interrupted")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    later.start()
    assert within(10, lambda: len(turns._waiting) == 2)
    time.sleep(0.02)
    assert got == []
    done.set()
    holder.join(10)
    later.join(10)
    assert got == ["turn"]
    assert not turns._waiting
