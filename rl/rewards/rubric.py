"""A checklist scored item by item (RuscaRL).

Source: RuscaRL (arXiv 2508.16949; released code): points of the items judged met over the
sum of the positive points; items with negative points subtract. What a rule can check is checked by a
rule; the context's judge says yes or no to the rest. Showing items to the policy beforehand is
guidance, not reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from agent.trajectory import Trajectory
from eval.metrics import contains, normalise
from rl.rewards.base import UNBOUNDED, Options, Range, Reward, RewardError, Values, at_end
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import calls, final_answer, is_call, judged, results, thought_of
from rl.rewards.registry import register


def _cites(trajectory: Trajectory) -> bool:
    """The answer names a source that was shown."""
    numbers = {source.number for source in trajectory.sources}
    return bool(final_answer(trajectory)) and bool(numbers & set(trajectory.citations))


def _grounded(trajectory: Trajectory) -> bool:
    """The answer occurs in a source that it cites."""
    cited = [s for s in trajectory.sources if s.number in trajectory.citations]
    answer = final_answer(trajectory)
    return any(contains(f"{s.title} {s.text}", answer) for s in cited)


def _covers_evidence(trajectory: Trajectory) -> bool:
    """Every gold passage was shown."""
    shown = {source.id for seen in results(trajectory) for source in seen.observation.sources}
    return bool(trajectory.task.evidence) and set(trajectory.task.evidence) <= shown


def _short(trajectory: Trajectory) -> bool:
    """The answer has at most ten words."""
    return 0 < len(normalise(final_answer(trajectory)).split()) <= 10


def _used_tool(trajectory: Trajectory) -> bool:
    """A tool was called."""
    return any(True for _ in calls(trajectory))


def _no_errors(trajectory: Trajectory) -> bool:
    """No tool call failed."""
    return all(seen.observation.error is None for seen in results(trajectory))


RULES: dict[str, Callable[[Trajectory], bool]] = {
    "cites_a_source": _cites,
    "grounded": _grounded,
    "covers_evidence": _covers_evidence,
    "short_answer": _short,
    "used_a_tool": _used_tool,
    "no_tool_errors": _no_errors,
}
"""Items that need no judge, by name."""


class Item(Options):
    """One item of a checklist: a criterion for the judge, or the name of a rule."""

    points: float
    criterion: str = ""
    rule: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.criterion) == bool(self.rule):
            raise ValueError("an item has a criterion or a rule")
        if self.rule and self.rule not in RULES:
            raise ValueError(f"no rule '{self.rule}'; there are: {', '.join(RULES)}")
        return self


@register
class Rubric(Reward):
    """Points met over positive points, on the last turn.

    Attributes:
        items: the checklist of every task; empty to read each task's own from `meta["rubric"]`.
        clip: hold the score within 0..1; as published it may be negative.
        met: the judge's score from which an item counts as met.
    """

    name: ClassVar[str] = "rubric"
    source: ClassVar[str] = "RuscaRL 2508.16949 (code)"
    last_turn_only: ClassVar[bool] = True
    items: tuple[Item, ...] = ()
    clip: bool = False
    met: float = Field(0.5, gt=0, le=1)

    @property
    def range(self) -> Range:
        """0..1 where clipped; else down to all negative points over the positive ones."""
        if self.clip:
            return Range(0.0, 1.0)
        if not self.items:
            return Range(UNBOUNDED.low, 1.0)
        return Range(min(rubric_score(self.items, [i.points < 0 for i in self.items]), 0.0), 1.0)

    @model_validator(mode="after")
    def _earns(self) -> Self:
        if self.items and not any(item.points > 0 for item in self.items):
            raise ValueError("no item has positive points")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        """A checklist, and a judge unless the reward's own items are all rules.

        A task's items are not known here: a judge is wanted for them.
        """
        own = (Need.RUBRIC,) if not self.items else ()
        judged = not self.items or any(item.criterion for item in self.items)
        return (*own, *((Need.JUDGE,) if judged else ()))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The score of each trajectory."""
        return [at_end(trajectory, self._value(trajectory, context)) for trajectory in group]

    def _value(self, trajectory: Trajectory, context: RewardContext) -> float:
        items = self.items or self._own(trajectory)
        score = rubric_score(items, [self._is_met(item, trajectory, context) for item in items])
        return min(max(score, 0.0), 1.0) if self.clip else score

    def _own(self, trajectory: Trajectory) -> tuple[Item, ...]:
        """The task's checklist.

        Raises:
            RewardError: it has none, an item is not one, or none has positive points.
        """
        rows: Any = trajectory.task.meta.get("rubric")
        if not isinstance(rows, list) or not rows:
            raise RewardError(f"task {trajectory.task.id} has no rubric", trajectory.id)
        try:
            items = tuple(Item.model_validate(row) for row in rows)
        except ValidationError as error:
            what = f"rubric of task {trajectory.task.id}: {error.errors()[0]['msg']}"
            raise RewardError(what, trajectory.id) from error
        if not any(item.points > 0 for item in items):
            what = f"rubric of task {trajectory.task.id}: no item has positive points"
            raise RewardError(what, trajectory.id)
        return items

    def _is_met(self, item: Item, trajectory: Trajectory, context: RewardContext) -> bool:
        if item.rule:
            return RULES[item.rule](trajectory)
        return judged(trajectory, item.criterion, transcript(trajectory), context) >= self.met


def rubric_score(items: Sequence[Item], met: Sequence[bool]) -> float:
    """Sum of the points of items met over the sum of positive points; at most 1."""
    positive = sum(item.points for item in items if item.points > 0)
    return sum(item.points for item, m in zip(items, met, strict=True) if m) / positive


def transcript(trajectory: Trajectory) -> str:
    """An episode as a judge reads it: question, thoughts, calls, results, answer."""
    lines = [f"Question: {trajectory.task.question}"]
    for turn in trajectory.turns:
        if thought := thought_of(turn):
            lines.append(f"Thought: {thought}")
        if is_call(turn):
            lines.append(f"Call: {turn.action.name} {turn.action.arguments}")
        if turn.observation is not None:
            seen = turn.observation
            shown = [f"[{s.number}] {s.title}: {s.text}" for s in seen.sources]
            lines.append("Result: " + (seen.error or "\n".join(shown) or seen.text))
    return "\n".join([*lines, f"Answer: {final_answer(trajectory) or '(none)'}"])
