"""Does the policy do what a plan says? Steps against tool calls, in order.

A plan is the task's (`meta["plan"]`, a list of sub-questions; where the task carries `meta["steps"]`,
the same with earlier answers filled in, as calls name them), or the policy's own: the steps of its first
call of the plan tool, recorded as `data["steps"]` of the observation, else as the `steps` argument or
the lines of any textual argument. No tool is imported: any that records this will do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from agent.trajectory import Action, Trajectory, Turn
from eval.metrics import normalise
from eval.metrics.text import set_overlap
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
from rl.rewards.reading import calls, is_call, query_words
from rl.rewards.registry import register

_NUMBERING = re.compile(r"^\s*(?:\d+[.)]|[-*\u2022])\s*")
_ASKING = frozenset("who what which when where why how is was did does do".split())


def own_steps(turn: Turn) -> list[str]:
    """Steps of a plan call."""
    data: dict[str, Any] = turn.observation.data if turn.observation else {}
    steps = data.get("steps") or turn.action.arguments.get("steps")
    if isinstance(steps, list):
        return [str(step) for step in steps if str(step).strip()]
    texts = [value for value in turn.action.arguments.values() if isinstance(value, str)]
    lines = (_NUMBERING.sub("", line).strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line]


def align(steps: Sequence[str], made: Sequence[Action], threshold: float) -> list[tuple[int, int]]:
    """Longest in-order matching of steps with calls: (step, call) index pairs.

    A call carries out a step when F1 of their words (question words aside) reaches the threshold.
    """
    fits = [[_fit(step, action) >= threshold for action in made] for step in steps]
    best = [[0] * (len(made) + 1) for _ in range(len(steps) + 1)]
    for s in reversed(range(len(steps))):
        for c in reversed(range(len(made))):
            skip = max(best[s + 1][c], best[s][c + 1])
            best[s][c] = max(skip, 1 + best[s + 1][c + 1]) if fits[s][c] else skip
    pairs, s, c = list[tuple[int, int]](), 0, 0
    while s < len(steps) and c < len(made):
        if fits[s][c] and best[s][c] == 1 + best[s + 1][c + 1]:
            pairs.append((s, c))
            s, c = s + 1, c + 1
        elif best[s + 1][c] >= best[s][c + 1]:
            s += 1
        else:
            c += 1
    return pairs


def _fit(step: str, action: Action) -> float:
    words = frozenset(normalise(step).split()) - _ASKING
    return set_overlap(query_words(action) - _ASKING, words).f1


@register
class PlanAdherence(Reward):
    """The share of plan steps carried out, on the turns that do; calls off the plan cost.

    A step counts once, so doing it again earns nothing and is off the plan. Against the policy's own
    plan an easy plan is soon done: it needs `least` steps to count in full.

    Attributes:
        against: the task's plan, or the policy's own.
        threshold: word F1 from which a call carries out a step.
        off_plan: cost of a call that carries out none.
        most: bound of those costs.
        least: steps of an own plan that count in full.
        tool: name of the plan tool; its calls are neither steps nor off the plan.
    """

    name: ClassVar[str] = "plan_adherence"
    source: ClassVar[str] = "own; gold plans: MuSiQue and StrategyQA decompositions"
    against: Literal["gold", "own"] = "gold"
    threshold: float = Field(0.5, gt=0, le=1)
    off_plan: float = Field(0.1, ge=0)
    most: float = Field(0.5, ge=0)
    least: int = Field(2, ge=1)
    tool: str = "plan"

    @property
    def range(self) -> Range:
        """All of the plan, or only the costs."""
        return Range(-self.most, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The task's plan, unless the policy's own is followed."""
        return (Need.PLAN,) if self.against == "gold" else ()

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Shares and costs by turn."""
        return [self._row(trajectory) for trajectory in group]

    def _row(self, trajectory: Trajectory) -> Floats:
        start, steps = self._plan(trajectory)
        row = nothing(trajectory)
        if not steps:
            return row
        made = self._made(trajectory, start)
        pairs = align(steps, [action for _, action in made], self.threshold)
        done = {made[call][0] for _, call in pairs}
        costs = nothing(trajectory)
        costs[[t for t, _ in made if t not in done]] = -self.off_plan
        enough = 1 if self.against == "gold" else self.least
        row[list(done)] = 1.0 / max(len(steps), enough)
        return row + saturated(costs, -self.most, 0.0)

    def given(self, trajectory: Trajectory) -> Bools:
        """Calls that can carry out a step; none without a plan."""
        start, steps = self._plan(trajectory)
        return at_turns(trajectory, (t for t, _ in self._made(trajectory, start) if steps))

    def _made(self, trajectory: Trajectory, start: int) -> list[tuple[int, Action]]:
        """Turn and action of the calls from a turn on, plans aside."""
        return [(t, a) for t, a in calls(trajectory) if a.name != self.tool and t >= start]

    def _plan(self, trajectory: Trajectory) -> tuple[int, list[str]]:
        """The turn from which on the plan holds, and its steps; none without an own plan.

        Raises:
            RewardError: the task has no plan.
        """
        if self.against == "own":
            return next(
                (
                    (t, own_steps(turn))
                    for t, turn in enumerate(trajectory.turns)
                    if is_call(turn) and turn.action.name == self.tool
                ),
                (0, []),
            )
        meta = trajectory.task.meta
        steps, solved = meta.get("plan"), meta.get("steps")
        if not isinstance(steps, list) or not steps:
            raise RewardError(f"task {trajectory.task.id} has no plan", trajectory.id)
        if isinstance(solved, list) and solved:  # of a single step of a task it is their number
            if not all(isinstance(one, dict) and "question" in one for one in solved):
                raise RewardError(f"task {trajectory.task.id} has malformed steps", trajectory.id)
            steps = [step["question"] for step in solved]
        return 0, list(map(str, steps))
