"""Search when you do not know, and only then (IKEA).

Source: IKEA (arXiv 2505.07596), reward of the released code. The table over (right?, searches RT):

    malformed                 -1
    right                      1 + bonus * (1 - min(RT, most) / most)
    wrong, RT >= 1             consolation
    wrong, RT = 0              0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from agent.trajectory import Trajectory
from eval.metrics import scorer
from rl.rewards.base import (
    Bools,
    Floats,
    Range,
    Reward,
    RewardError,
    Values,
    at_end,
    at_turns,
    nothing,
    only_last,
)
from rl.rewards.context import Need, RewardContext, task_key
from rl.rewards.format import LastReplyRules
from rl.rewards.reading import calls, is_right, last
from rl.rewards.registry import register


def is_known(right: Iterable[bool]) -> bool:
    """IKEA's label of a question: known when any closed-book answer was right."""
    return any(right)


def searches(trajectory: Trajectory, tools: Sequence[str]) -> list[int]:
    """Turns that ask for one of the tools, whether or not the call was carried out."""
    return [turn for turn, action in calls(trajectory) if action.name in tools]


@register
class KnowledgeBoundary(Reward):
    """IKEA's table: answer, search frugality and format in one number.

    The label of a question is not read: awareness comes from a training mix of known and unknown
    questions.

    Attributes:
        bonus: of a right answer without a search (r_kb+).
        most: searches at which the bonus is used up (RT_max).
        consolation: of a wrong answer after a search (r_kb-).
        malformed: of a trajectory that breaks the format.
        tools: whose calls are searches.
        place: `last`, or `turns`: the whole bonus sits on the last turn and each search that counts
            gives back its share where it is made, so that the sum is the same.
        rules: of the format; an answer forced after the spent budget is valid, as in the released code,
            whose last reply has no search.
    """

    name: ClassVar[str] = "knowledge_boundary"
    source: ClassVar[str] = "IKEA 2505.07596 (code)"
    bonus: float = Field(0.6, ge=0)
    most: int = Field(3, ge=1)
    consolation: float = Field(0.05, ge=0, lt=1)
    malformed: float = Field(-1.0, le=0)
    tools: tuple[str, ...] = ("search",)
    scorer: str = "ikea"
    place: Literal["last", "turns"] = "last"
    rules: LastReplyRules = LastReplyRules()

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return scorer(name).name

    @property
    def range(self) -> Range:
        """From malformed to right without a search."""
        return Range(self.malformed, 1.0 + self.bonus)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Accepted answers."""
        return (Need.ANSWERS,)

    def closed_form(self, right: bool, searched: int, valid: bool = True) -> float:
        """The table's entry."""
        if not valid:
            return self.malformed
        if right:
            return 1.0 + self.bonus * (1.0 - min(searched, self.most) / self.most)
        return self.consolation if searched else 0.0

    def given(self, trajectory: Trajectory) -> Bools:
        """The last turn and, where searches give back their share of the bonus, theirs."""
        if self.place == "last" or not (
            is_right(trajectory, self.scorer) and self.rules.valid(trajectory)
        ):
            return only_last(trajectory)
        paying = searches(trajectory, self.tools)[: self.most]
        return only_last(trajectory) | at_turns(trajectory, paying)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The entry of each trajectory."""
        return [self._row(trajectory) for trajectory in group]

    def _row(self, trajectory: Trajectory) -> Floats:
        right = is_right(trajectory, self.scorer)
        valid = self.rules.valid(trajectory)
        found = searches(trajectory, self.tools)
        if self.place == "last" or not (right and valid):
            return at_end(trajectory, self.closed_form(right, len(found), valid))
        row = at_end(trajectory, 1.0 + self.bonus)
        row[found[: self.most]] -= self.bonus / self.most
        return row


@register
class BoundaryLabel(Reward):
    """Searching against the closed-book label of the question.

    On a known question each search costs, on the turn of the search. On an unknown one, answering
    without any search costs, on the last turn; abstaining does not.

    Attributes:
        known_cost: of a search on a known question.
        most: searches that cost; more cost no more.
        unknown_cost: of an answer without a search on an unknown question.
        tools: whose calls are searches.
    """

    name: ClassVar[str] = "boundary_label"
    source: ClassVar[str] = "own, with the labels of IKEA 2505.07596"
    known_cost: float = Field(0.1, ge=0)
    most: int = Field(3, ge=1)
    unknown_cost: float = Field(0.3, ge=0)
    tools: tuple[str, ...] = ("search",)

    @property
    def range(self) -> Range:
        """Costs only."""
        return Range(-max(self.known_cost * self.most, self.unknown_cost), 0.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The label of each question."""
        return (Need.KNOWN,)

    def given(self, trajectory: Trajectory) -> Bools:
        """Searches and the last turn: the turns that a label makes good or bad."""
        return only_last(trajectory) | at_turns(trajectory, searches(trajectory, self.tools))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Costs by label."""
        return [self._row(trajectory, context) for trajectory in group]

    def _row(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        known = context.known.get(task_key(trajectory.task))
        if known is None:
            what = f"task {trajectory.task.id} has no knowledge boundary label"
            raise RewardError(what, trajectory.id, last(trajectory))
        found = searches(trajectory, self.tools)
        if known:
            row = nothing(trajectory)
            row[found[: self.most]] = -self.known_cost
            return row
        guessed = not found and not trajectory.abstained
        return at_end(trajectory, -self.unknown_cost if guessed else 0.0)
