"""What an episode spends: tool calls, time, repetition. Costs only, each with a bound.

A cost without a bound teaches a policy to do nothing; one that is charged to wrong answers too
teaches it to give up early. `only_when_right` charges right answers alone, as IKEA's bonus does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from agent.trajectory import Action, Trajectory
from eval.metrics import scorer
from rl.rewards.base import (
    Bools,
    Floats,
    Range,
    Reward,
    RewardError,
    Values,
    at_turns,
    nothing,
    saturated,
)
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import calls, is_right, query_words
from rl.rewards.registry import register


class Cost(Reward):
    """A bounded sum of charges.

    Attributes:
        most: the charges of a trajectory never exceed this.
        only_when_right: charge only trajectories whose answer is right under `scorer`.
    """

    source: ClassVar[str] = "own"
    most: float = Field(0.5, ge=0)
    only_when_right: bool = False
    scorer: str = "squad"

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return scorer(name).name

    @property
    def range(self) -> Range:
        """Costs only."""
        return Range(-self.most, 0.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers, where only right ones are charged."""
        return (Need.ANSWERS,) if self.only_when_right else ()

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Charges on the turns that cause them."""
        return [self._row(trajectory) for trajectory in group]

    def _row(self, trajectory: Trajectory) -> Floats:
        if self.only_when_right and not is_right(trajectory, self.scorer):
            return nothing(trajectory)
        return saturated(-self.charges(trajectory), -self.most, 0.0)

    @abstractmethod
    def charges(self, trajectory: Trajectory) -> Floats:
        """float64[turns]: what each turn costs, at least 0, before the bound."""


@register
class ToolCost(Cost):
    """A price for each tool call, on its turn; verdicts are free.

    Attributes:
        prices: by tool; `price` for the others.
        free: calls, from the first, that cost nothing.
    """

    name: ClassVar[str] = "tool_cost"
    price: float = Field(0.05, ge=0)
    prices: dict[str, float] = Field(default_factory=dict)
    free: int = Field(0, ge=0)

    def charges(self, trajectory: Trajectory) -> Floats:
        """The price of each call."""
        row = nothing(trajectory)
        for turn, action in list(calls(trajectory))[self.free :]:
            row[turn] = self.prices.get(action.name, self.price)
        return row

    @field_validator("prices")
    @classmethod
    def _charges(cls, prices: dict[str, float]) -> dict[str, float]:
        if any(not price >= 0 for price in prices.values()):
            raise ValueError("a price is at least 0")
        return prices


@register
class Latency(Cost):
    """Wall time of policy and tools beyond what is free, on the turn that takes it.

    Attributes:
        per_second: cost of a second.
        free_seconds: of the whole trajectory.
    """

    name: ClassVar[str] = "latency"
    per_second: float = Field(0.01, ge=0)
    free_seconds: float = Field(10.0, ge=0)

    def charges(self, trajectory: Trajectory) -> Floats:
        """Seconds beyond the free ones, at the rate."""
        row, left = nothing(trajectory), self.free_seconds
        for t, turn in enumerate(trajectory.turns):
            seconds = turn.policy_seconds + turn.tool_seconds
            if not 0 <= seconds < float("inf"):
                raise RewardError(f"the turn took {seconds} s", trajectory.id, t)
            row[t] = self.per_second * max(seconds - left, 0.0)
            left = max(left - seconds, 0.0)
        return row


@register
class Repetition(Cost):
    """A call that was made before, with the same arguments or, of free text, nearly the same words.

    Attributes:
        penalty: of a repeated call.
        similarity: words in common over words in all (Jaccard) from which a call of free text counts as
            repeated; 1 for the same words only.
        tools: whose arguments are free text. Those of others repeat letter by letter: case and brackets
            of a SMILES make another molecule.
    """

    name: ClassVar[str] = "repetition"
    penalty: float = Field(0.1, ge=0)
    similarity: float = Field(0.8, gt=0, le=1)
    tools: tuple[str, ...] = ("search",)

    def given(self, trajectory: Trajectory) -> Bools:
        """Calls: nothing else can repeat one."""
        return at_turns(trajectory, (turn for turn, _ in calls(trajectory)))

    def charges(self, trajectory: Trajectory) -> Floats:
        """The penalty on each call that repeats an earlier one."""
        row, earlier = nothing(trajectory), list[Action]()
        for turn, action in calls(trajectory):
            row[turn] = self.penalty * any(self._same(action, other) for other in earlier)
            earlier.append(action)
        return row

    def _same(self, one: Action, other: Action) -> bool:
        if one.name != other.name:
            return False
        a, b = query_words(one), query_words(other)
        if one.name not in self.tools or not a | b:
            return one.arguments == other.arguments
        return len(a & b) / len(a | b) >= self.similarity
