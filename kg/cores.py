"""Heavy work of one process takes turns on the processor's cores.

An engine and a text encoder each bring a pool of threads as large as the machine. Side by side they cost
far more than their work adds up to: every parallel loop ends with its last thread, and that one waits
for a core that the other pool has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Turns:
    """One piece of work at a time, in the order in which they asked.

    A loop of many steps that asks for a turn for each lets others in between. Turns do not nest.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._waiting: deque[Lock] = deque()  # the first has the turn, and its lock is open

    @contextmanager
    def turn(self, needed: bool = True) -> Iterator[None]:
        """Waits until all who asked before are done; without need (work for a GPU) for nobody."""
        if not needed:
            yield
            return
        mine = Lock()
        mine.acquire()
        try:
            with self._guard:
                self._waiting.append(mine)
                if self._waiting[0] is mine:
                    mine.release()
            mine.acquire()
            yield
        finally:
            with self._guard:
                if mine in self._waiting:  # an interrupt may come before
                    first = self._waiting[0] is mine
                    self._waiting.remove(mine)
                    if first and self._waiting:
                        self._waiting[0].release()


#: Those of this process.
CORES = Turns()
