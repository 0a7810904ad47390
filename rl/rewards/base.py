"""What a reward is: a pure function from a group of trajectories to one number a turn.

Values are ragged: a list with a float64[turns] array for each trajectory, in the group's order. There
is no padding to mask; `padded` makes a rectangle for those who want one. A reward of the outcome sits
on the last turn, where the episode was decided; a trajectory without turns has no place for any.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from agent.trajectory import Trajectory
from kg.errors import TurnwiseError
from rl.recipe import Strict
from rl.rewards.context import Need, RewardContext

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Values: TypeAlias = list[Floats]


class RewardError(TurnwiseError):
    """A reward cannot be computed: data are missing, or a value is not a number.

    Attributes:
        trajectory: id of the trajectory, "" when it is about the whole group.
        turn: index of the turn, from 0; None when it is about the whole trajectory.
    """

    def __init__(
        self, what: str, trajectory: str = "", turn: int | None = None, hint: str = ""
    ) -> None:
        where = f"trajectory {trajectory}" if trajectory else ""
        where += f", turn {turn}" if turn is not None else ""
        super().__init__(f"{where}: {what}" if where else what, hint)
        self.trajectory = trajectory
        self.turn = turn


class Range(NamedTuple):
    """Bounds of a trajectory's values, summed over its turns; infinite where there is none."""

    low: float
    high: float


UNBOUNDED = Range(-math.inf, math.inf)


class Options(Strict):
    """A group of options: unknown ones are refused, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reward(Options, ABC):
    """A reward and its options: subclasses declare options as fields, unknown ones are refused.

    Attributes:
        name: as recipes and logs call it.
        source: paper and section, or "own" where the form is this project's.
        last_turn_only: whether it speaks of the last turn alone.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    last_turn_only: ClassVar[bool] = False

    @property
    @abstractmethod
    def range(self) -> Range:
        """Bounds of a trajectory's sum under these options."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be provided under these options."""
        return ()

    def given(self, trajectory: Trajectory) -> Bools:
        """bool[turns]: where it speaks at all; 0 there is a reward of 0, elsewhere it is none.

        What normalises a reward over the turns that have it needs to know: a 0 that is none moves the
        mean of all others. Every turn unless a subclass says otherwise, as costs mean it: a turn that
        spent nothing is charged 0.
        """
        return only_last(trajectory) if self.last_turn_only else ~at_turns(trajectory, ())

    @abstractmethod
    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The rewards of a group that is not empty; see `__call__`."""

    def __call__(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Reward every turn of a group.

        Args:
            group: trajectories of one task; may be empty.
            context: what was computed before.

        Returns:
            float64[turns] for each trajectory.

        Raises:
            RewardError: several tasks in one group, data missing, or a value that is not finite; it
                names the trajectory and the turn.
        """
        tasks = {trajectory.task.id for trajectory in group}
        if len(tasks) > 1:
            first, second = sorted(tasks)[:2]
            raise RewardError(f"{self.name}: one group holds the tasks {first} and {second}")
        found = self.values(group, context) if group else []
        for trajectory, row in zip(group, found, strict=True):
            _check(self.name, trajectory, row)
        return found


def _check(name: str, trajectory: Trajectory, row: Floats) -> None:
    if row.shape != (len(trajectory.turns),):
        shape = f"{row.shape} for {len(trajectory.turns)} turns"
        raise RewardError(f"{name}: values of shape {shape}", trajectory.id)
    if not np.isfinite(row).all():
        turn = int(np.flatnonzero(~np.isfinite(row))[0])
        raise RewardError(f"{name}: the value is {row[turn]}", trajectory.id, turn)


def at_turns(trajectory: Trajectory, turns: Iterable[int]) -> Bools:
    """bool[turns]: true at the turns named."""
    mask = np.zeros(len(trajectory.turns), dtype=np.bool_)
    mask[list(turns)] = True
    return mask


def only_last(trajectory: Trajectory) -> Bools:
    """bool[turns]: true at the last turn, if there is one."""
    return at_turns(trajectory, range(len(trajectory.turns))[-1:])


def nothing(trajectory: Trajectory) -> Floats:
    """float64[turns] of zeros."""
    return np.zeros(len(trajectory.turns))


def at_end(trajectory: Trajectory, value: float) -> Floats:
    """float64[turns]: the value on the last turn, 0 before."""
    row = nothing(trajectory)
    if len(row):
        row[-1] = value
    return row


def saturated(row: Iterable[float], low: float, high: float) -> Floats:
    """Values whose running total, from 0, never leaves [low, high].

    Each value is what the total really moved. Nothing is hoarded beyond a bound: after too many good
    turns the next bad one costs in full.
    """
    total, moved = 0.0, []
    for value in row:
        after = min(max(total + value, low), high)
        moved.append(after - total)
        total = after
    return np.array(moved, dtype=np.float64)


def padded(values: Values) -> tuple[Floats, Bools]:
    """float64[trajectories, longest] with zeros behind each row's end, and true where a turn is."""
    longest = max((len(row) for row in values), default=0)
    mask = np.array([[t < len(row) for t in range(longest)] for row in values], dtype=np.bool_)
    mask = mask.reshape(len(values), longest)
    rectangle = np.zeros((len(values), longest))
    rectangle[mask] = np.concatenate(values) if values else []
    return rectangle, mask


def unit(value: object, what: str, trajectory: str, turn: int | None = None) -> float:
    """The value itself when it lies in 0..1.

    Raises:
        RewardError: it does not, or is not a number.
    """
    number = float(value) if isinstance(value, Real) else math.nan
    if not 0.0 <= number <= 1.0:
        raise RewardError(f"{what} is {value!r}, not between 0 and 1", trajectory, turn)
    return number
