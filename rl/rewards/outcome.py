"""Was the answer right? One number, on the last turn.

Scores come from `eval.metrics`, so that training and evaluation cannot disagree. A task without an
answer (`answerable` is False) is right when the policy declined by its own act; running out of budget
is no abstention.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from agent.trajectory import Trajectory
from eval.metrics import SCORERS, normalise, scorer
from eval.metrics.choice import entities_in, entity_overlap, multiple_choice
from eval.metrics.values import number_in
from rl.rewards.base import Range, Reward, RewardError, Values, at_end
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import final_answer, gold, meta_texts
from rl.rewards.registry import register

_PERCENT = re.compile(r"\d\s?%")


class Outcome(Reward):
    """A score of the answer, on the last turn.

    Attributes:
        declined: reward of declining a task that has no answer.
    """

    source: ClassVar[str] = "the scripts of the question sets, see eval.metrics.answers"
    last_turn_only: ClassVar[bool] = True
    declined: float = Field(1.0, ge=0, le=1)

    @property
    def range(self) -> Range:
        """Scores lie in 0..1."""
        return Range(0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Accepted answers."""
        return (Need.ANSWERS,)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The score of each answer, on its last turn."""
        return [at_end(trajectory, self.score(trajectory)) for trajectory in group]

    def score(self, trajectory: Trajectory) -> float:
        """0 to 1; an empty answer is worth nothing.

        Raises:
            RewardError: the task lacks what the answer is compared with.
        """
        if trajectory.task.answerable is False:
            return self.declined if trajectory.abstained else 0.0
        answers, said = gold(trajectory), final_answer(trajectory)
        return self.compare(trajectory, said, answers) if said else 0.0

    @abstractmethod
    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Score of an answer that is not empty."""


class Scored(Outcome):
    """An outcome under a named scorer of `eval.metrics`."""

    scorer: str = "squad"

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return scorer(name).name


@register
class ExactMatch(Scored):
    """1 when the normalised answer equals an accepted one."""

    name: ClassVar[str] = "exact_match"

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """The scorer's exact match."""
        return SCORERS[self.scorer](said, answers).em


@register
class TokenF1(Scored):
    """F1 of tokens, the best over accepted answers."""

    name: ClassVar[str] = "f1"

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """The scorer's F1."""
        return SCORERS[self.scorer](said, answers).f1


@register
class CoverMatch(Scored):
    """1 when an accepted answer occurs in the answer, and the answer is not much longer.

    Attributes:
        extra_words: words that the answer may have beyond the longest accepted one; a text that lists
            everything it read would cover any answer.
    """

    name: ClassVar[str] = "cover_match"
    extra_words: int = Field(10, ge=0)

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """The scorer's cover match within the allowed length."""
        longest = max(len(normalise(answer).split()) for answer in answers)
        if len(normalise(said).split()) > longest + self.extra_words:
            return 0.0
        return SCORERS[self.scorer](said, answers).cover


@register
class SetF1(Outcome):
    """F1 of the answer as a set of entities.

    The answer is cut at commas, semicolons, line ends and the word "and", but never within a gold entity
    (`eval.metrics.choice.entities_in`). Gold entities are `meta["answer_set"]`, else the accepted
    answers.
    """

    name: ClassVar[str] = "set_f1"

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Precision against recall of entities."""
        entities = meta_texts(trajectory, "answer_set") or list(answers)
        return entity_overlap(entities_in(said, entities), entities).f1


@register
class MultipleChoice(Outcome):
    """1 when the answer names the right choice, by its letter or its text."""

    name: ClassVar[str] = "multiple_choice"
    source: ClassVar[str] = "MedQA and other choice sets, see eval.metrics.choice"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The choices and which is right."""
        return (Need.CHOICES,)

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Against `meta["choices"]` and `meta["right"]`."""
        meta = trajectory.task.meta
        if not {"choices", "right"} <= meta.keys():
            raise RewardError(f"task {trajectory.task.id} has no choices", trajectory.id)
        choices = meta_texts(trajectory, "choices")
        try:
            return multiple_choice(said, choices, meta["right"])
        except (TypeError, ValueError) as error:
            what = f"the choices of task {trajectory.task.id}: {error}"
            raise RewardError(what, trajectory.id) from error


@register
class Numeric(Outcome):
    """1 when the only number in the answer is within tolerance of an accepted one.

    Units are not converted. An answer with several numbers says none.

    Attributes:
        relative: share of the gold value.
        absolute: in the unit of the gold value; the wider of the two counts.
    """

    name: ClassVar[str] = "numeric"
    source: ClassVar[str] = "own"
    relative: float = Field(0.01, ge=0)
    absolute: float = Field(0.0, ge=0)

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Against each accepted number."""
        golds = [number for answer in answers if (number := only_number(answer)) is not None]
        if not golds:
            raise RewardError(
                f"no gold answer of task {trajectory.task.id} is a number", trajectory.id
            )
        value = only_number(said)
        near = value is not None and any(
            math.isclose(value, g, rel_tol=0, abs_tol=max(self.absolute, self.relative * abs(g)))
            for g in golds
        )
        return float(near)


def only_number(text: str) -> float | None:
    """`eval.metrics.values.number_in`, for which `12%` and `12 %` are 0.12."""
    value = number_in(text)
    return value / 100 if value is not None and _PERCENT.search(text) else value
