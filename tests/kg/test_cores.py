"""Turns on the cores: one at a time, in order, and whatever happens to who has one or waits."""

import ctypes
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


def test_an_error_gives_the_turn_on():
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.turn():
        raise ValueError("broken")
    with turns.turn():
        pass
    assert not turns._waiting


def test_who_is_interrupted_while_waiting_is_forgotten():
    turns, seen = Turns(), []

    class Stop(Exception):
        pass

    def waits():
        try:
            with turns.turn():
                seen.append("turn")
        except Stop:
            seen.append("stopped")

    with turns.turn():
        thread = threading.Thread(target=waits)
        thread.start()
        assert within(10, lambda: len(turns._waiting) == 2)
        asked = ctypes.c_ulong(thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(asked, ctypes.py_object(Stop))
    # the lock's wait ends with the turn; the exception comes then, before or in its own turn
    thread.join(10)
    assert seen[-1] == "stopped"
    with turns.turn():
        pass
    assert not turns._waiting
