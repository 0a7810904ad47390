"""Rewards that somebody attached to logged episodes: feedback of users, grades of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from agent.trajectory import Trajectory
from rl.rewards.base import UNBOUNDED, Range, Reward, RewardError, Values, at_end
from rl.rewards.context import RewardContext
from rl.rewards.registry import register


@register
class Attached(Reward):
    """The number under a name in `Trajectory.rewards`, on the last turn.

    Attributes:
        key: the name.
    """

    name: ClassVar[str] = "attached"
    source: ClassVar[str] = "own"
    last_turn_only: ClassVar[bool] = True
    key: str = Field("feedback", min_length=1)

    @property
    def range(self) -> Range:
        """Whatever was attached."""
        return UNBOUNDED

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The number of each trajectory."""
        lacking = [t.id for t in group if t.turns and self.key not in t.rewards]
        if lacking:
            raise RewardError(f"no reward '{self.key}' is attached", lacking[0])
        return [at_end(t, float(t.rewards.get(self.key, 0.0))) for t in group]
