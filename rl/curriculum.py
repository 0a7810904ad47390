"""Which tasks a step asks: every task once before any of them again, in an order drawn by seed.

What a step draws depends on its number alone, so that a resumed run asks what an uninterrupted one asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent.task import Task
from rl.question_sets import QuestionSet


class Drawn(NamedTuple):
    """A task and the set that it belongs to."""

    source: QuestionSet
    task: Task


class Shuffle:
    """Passes over all tasks, each in an order of its own.

    Args:
        sets: with at least one task.
        seed: of the orders.
    """

    def __init__(self, sets: Sequence[QuestionSet], seed: int) -> None:
        self._all = [Drawn(one, task) for one in sets for task in one.tasks]
        self._seed = seed

    def draw(self, step: int, count: int) -> list[Drawn]:
        """The tasks of a step, from 1; the last few of a pass that make no whole step are left out."""
        count = min(count, len(self._all))
        per_pass = len(self._all) // count
        lap, place = divmod(step - 1, per_pass)
        order = np.random.default_rng([self._seed, lap]).permutation(len(self._all))
        return [self._all[i] for i in order[place * count : (place + 1) * count]]
