"""Answer what can be answered, decline what cannot, and be sure of the right things (SALU).

SALU (arXiv 2507.16951) rewards right answers and right abstentions and penalises hallucination, more
so when the policy is confident. Its table and weights were never published: the table here is this
project's. With confidence c in 0..1 and weight w:

    answerable, right          right * (1 + w * up(c))
    answerable, declined       declined_answerable
    answerable, wrong          wrong * (1 + w * down(c))
    unanswerable, declined     declined * (1 + w * up(c))
    unanswerable, answered     hallucinated * (1 + w * down(c))

`linear`: up(c) = down(c) = c, which pays for extremes. `quadratic`: up(c) = 1 - (1 - c)^2 and
down(c) = c^2, a Brier score: when right and wrong weigh the same, the best confidence to state is the
chance of being right.

A reply that is to state its confidence and states none, or an impossible one, counts as the worst for
its case, c = 0 where it did well and c = 1 where it did not: leaving it out never pays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from agent.trajectory import Trajectory
from eval.metrics import scorer
from rl.rewards.base import Range, Reward, RewardError, Values, at_end, unit
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import is_right, last
from rl.rewards.registry import register

_STATED = re.compile(
    r"confidence(?:\s+(?:level|score))?(?:\s+(?:is|of|at))?[^\w.]{0,5}"
    r"(\d*\.?\d+)\s*(%|percent|(?:/|out of|in)\s*\d+(?:\.\d+)?)?",
    re.IGNORECASE,
)


_SCALES = (1, 5, 10, 100)


@register
class Abstention(Reward):
    """The five cases, on the last turn.

    A task of unknown answerability with accepted answers counts as answerable.

    Attributes:
        right, declined_answerable, wrong, declined, hallucinated: of the five cases; hallucination is
            the worst, and declining an answerable question is better than a wrong answer.
        weight: of the confidence; 0 ignores it.
        shape: how confidence counts.
        confidence: `measured` (geometric-mean probability of the final reply's tokens), `stated` in
            the final reply ("confidence: 80%", "0.8", "8/10"; a plain number above 1 has no scale and
            counts as none, which is the worst for the case), or `given` in the context (in a run, the
            share of the task's other rollouts that end alike).
        scorer: of right answers.
    """

    name: ClassVar[str] = "abstention"
    source: ClassVar[str] = "own table, after SALU 2507.16951"
    last_turn_only: ClassVar[bool] = True
    right: float = Field(1.0, ge=0)
    declined_answerable: float = Field(-0.2, le=0)
    wrong: float = Field(-1.0, le=0)
    declined: float = Field(1.0, ge=0)
    hallucinated: float = Field(-2.0, le=0)
    weight: float = Field(0.5, ge=0)
    shape: Literal["quadratic", "linear"] = "quadratic"
    confidence: Literal["measured", "stated", "given"] = "measured"
    scorer: str = "squad"

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return scorer(name).name

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.hallucinated <= self.wrong <= self.declined_answerable:
            raise ValueError("the order is hallucinated <= wrong <= declined_answerable")
        return self

    @property
    def range(self) -> Range:
        """The worst and the best case at full confidence."""
        most = 1.0 + self.weight
        return Range(self.hallucinated * most, max(self.right, self.declined) * most)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers, answerability and, when it is given, confidence."""
        given = (Need.CONFIDENCE,) if self.weight and self.confidence == "given" else ()
        return (Need.ANSWERS, Need.ANSWERABLE, *given)

    def case(
        self, answerable: bool, declined: bool, right: bool, confidence: float | None
    ) -> float:
        """The table's entry at a confidence in 0..1; None, one that is not stated, is the worst."""
        if answerable and declined:
            return self.declined_answerable
        if answerable:
            value = self.right if right else self.wrong
        else:
            value = self.declined if declined else self.hallucinated
        return value * (1.0 + self.weight * self._scaled(confidence, value > 0))

    def _scaled(self, confidence: float | None, good: bool) -> float:
        if confidence is None:
            return 0.0 if good else 1.0
        if self.shape == "linear":
            return confidence
        return 1.0 - (1.0 - confidence) ** 2 if good else confidence**2

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """One case for each trajectory."""
        return [at_end(trajectory, self._value(trajectory, context)) for trajectory in group]

    def _value(self, trajectory: Trajectory, context: RewardContext) -> float:
        if not trajectory.turns:
            return 0.0
        answerable = trajectory.task.answerable is not False
        right = is_right(trajectory, self.scorer)
        sure = self._confidence(trajectory, context) if self.weight else 0.0
        return self.case(answerable, trajectory.abstained, right, sure)

    def _confidence(self, trajectory: Trajectory, context: RewardContext) -> float | None:
        """0 to 1; None where the policy was to state it and did not.

        Raises:
            RewardError: there is none for another reason, or it is not between 0 and 1.
        """
        if self.confidence == "stated":
            return stated_confidence(trajectory.turns[-1].text)
        measured = self.confidence == "measured"
        found = trajectory.confidence if measured else context.confidence.get(trajectory.id)
        if found is None:
            raise RewardError(f"no {self.confidence} confidence", trajectory.id, last(trajectory))
        return unit(found, "the confidence", trajectory.id, last(trajectory))


def stated_confidence(text: str) -> float | None:
    """The last confidence a text states, 0 to 1; None when it states none or an impossible one."""
    found = _STATED.findall(text)
    if not found:
        return None
    number, scale = found[-1]
    most = float(re.sub(r"[^\d.]", "", scale) or (100 if scale else 1))
    value = float(number) / most if most in _SCALES else math.inf
    return value if value <= 1 else None
