"""Several rewards as one weighted sum, every part kept on its own; and the aspects of RESTL.

Source of the aspects: RESTL (arXiv 2511.08555): four aspects of an output, weights 0.2, 0.25, 0.35 and
0.2. There each aspect is a trained reward model of a translation; here each is the nearest rule for an
answer found with tools: coverage of gold atoms → `evidence_recall`, back-translation similarity →
`argument_validity`, succinctness → `brevity`, ROUGE-L → `rouge_l`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from agent.trajectory import Trajectory
from eval.metrics import normalise
from eval.metrics.text import Overlap
from rl.rewards.base import Bools, Options, Range, Reward, RewardError, Values, at_end, nothing
from rl.rewards.context import Need, RewardContext
from rl.rewards.outcome import Outcome
from rl.rewards.reading import calls, results, shown_ids
from rl.rewards.registry import make_reward, register

Weight: TypeAlias = float | tuple[float, float]
"""A number, or one at the run's start and one at its end, linear between."""


def weight_at(weight: Weight, progress: float | None) -> float:
    """The weight at a share of the run that is done.

    Raises:
        RewardError: the weight changes and the progress is unknown or outside 0..1.
    """
    if not isinstance(weight, tuple):
        return weight
    if progress is None or not 0.0 <= progress <= 1.0:
        raise RewardError(f"a weight changes over the run, whose progress is {progress}")
    start, end = weight
    return start + (end - start) * progress


class Part(Options):
    """One reward of a combination: registered name, weight and options."""

    reward: str
    weight: Weight = 1.0
    options: dict[str, Any] = Field(default_factory=dict)


@register
class Combination(Reward):
    """Weighted sum of named rewards.

    Attributes:
        parts: label to part; the labels are what logs call them.
    """

    name: ClassVar[str] = "combination"
    source: ClassVar[str] = "RESTL 2511.08555 (weighted sum of aspects)"
    parts: dict[str, Part] = Field(min_length=1)

    @model_validator(mode="after")
    def _made(self) -> Self:
        assert self.rewards  # a wrong name or option is told when the combination is made
        return self

    @cached_property
    def rewards(self) -> dict[str, Reward]:
        """The parts, made, by label."""
        return {label: make_reward(p.reward, p.options) for label, p in self.parts.items()}

    @property
    def leaves(self) -> Iterator[Reward]:
        """The rewards that are no sums themselves, those of combinations within it too."""
        for reward in self.rewards.values():
            if isinstance(reward, Combination):
                yield from reward.leaves
            else:
                yield reward

    @property
    def range(self) -> Range:
        """Sum of the parts' ranges at the weights that stretch them most."""
        low, high = 0.0, 0.0
        for label, part in self.parts.items():
            weights = part.weight if isinstance(part.weight, tuple) else (part.weight,)
            ends = [w * end for w in weights if w for end in self.rewards[label].range]
            low, high = low + min(ends, default=0.0), high + max(ends, default=0.0)
        return Range(low, high)

    @property
    def needs(self) -> tuple[Need, ...]:
        """All that the parts need, and the progress where a weight changes."""
        ramp = any(isinstance(part.weight, tuple) for part in self.parts.values())
        inner = [need for reward in self.rewards.values() for need in reward.needs]
        return tuple(dict.fromkeys([*inner, *([Need.PROGRESS] if ramp else [])]))

    def given(self, trajectory: Trajectory) -> Bools:
        """Where any part speaks."""
        masks = [reward.given(trajectory) for reward in self.rewards.values()]
        anywhere: Bools = np.any(masks, axis=0)
        return anywhere

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The weighted sum."""
        return total(self.weighted(group, context), group)

    def separate(self, group: Sequence[Trajectory], context: RewardContext) -> dict[str, Values]:
        """Each part's own values, before weights, by label."""
        return {label: reward(group, context) for label, reward in self.rewards.items()}

    def weighted(self, group: Sequence[Trajectory], context: RewardContext) -> dict[str, Values]:
        """Each part times its weight: they add up to the combination."""
        return {
            label: [row * weight_at(self.parts[label].weight, context.progress) for row in values]
            for label, values in self.separate(group, context).items()
        }


def total(parts: Mapping[str, Values], group: Sequence[Trajectory]) -> Values:
    """Sum of parts, turn by turn."""
    return [
        np.sum([values[i] for values in parts.values()], axis=0) if parts else nothing(trajectory)
        for i, trajectory in enumerate(group)
    ]


def without_each(parts: Mapping[str, Values], group: Sequence[Trajectory]) -> dict[str, Values]:
    """For each part the sum of all the others: the drop-one-aspect table's rewards."""
    return {label: total({k: v for k, v in parts.items() if k != label}, group) for label in parts}


def restl() -> Combination:
    """RESTL's four aspects under its weights."""
    weights = {"evidence_recall": 0.2, "argument_validity": 0.25, "brevity": 0.35, "rouge_l": 0.2}
    return Combination(parts={name: Part(reward=name, weight=w) for name, w in weights.items()})


class _Aspect(Reward):
    """An aspect between 0 and 1."""

    source: ClassVar[str] = "own rule, after RESTL 2511.08555"
    last_turn_only: ClassVar[bool] = True

    @property
    def range(self) -> Range:
        """A share."""
        return Range(0.0, 1.0)


@register
class ArgumentValidity(_Aspect):
    """Share of tool calls that their tool could carry out, on the last turn; 0 without a call."""

    name: ClassVar[str] = "argument_validity"

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The share for each trajectory."""
        return [at_end(trajectory, self._share(trajectory)) for trajectory in group]

    def _share(self, trajectory: Trajectory) -> float:
        made = sum(1 for _ in calls(trajectory))
        good = sum(seen.observation.error is None for seen in results(trajectory))
        return good / made if made else 0.0


@register
class EvidenceRecall(_Aspect):
    """Share of the gold passages that were shown, on the last turn; 0 where there is no answer."""

    name: ClassVar[str] = "evidence_recall"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Gold passages."""
        return (Need.EVIDENCE,)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The share for each trajectory."""
        return [at_end(trajectory, self._share(trajectory)) for trajectory in group]

    def _share(self, trajectory: Trajectory) -> float:
        task = trajectory.task
        if task.answerable is False:
            return 0.0
        if not task.evidence:
            raise RewardError(f"task {task.id} has no gold evidence", trajectory.id)
        shown = set[str]().union(*(shown_ids(seen.observation) for seen in results(trajectory)))
        return len(shown & set(task.evidence)) / len(set(task.evidence))


@register
class Brevity(Outcome):
    """1 up to the length of the longest gold answer, then falling as gold over answer length.

    In normalised words. An empty answer is not brief: it is worth nothing.
    """

    name: ClassVar[str] = "brevity"
    source: ClassVar[str] = "own rule, after RESTL 2511.08555"

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Longest gold length over the answer's, at most 1."""
        longest = max(len(normalise(answer).split()) for answer in answers)
        return min(1.0, longest / max(len(normalise(said).split()), 1))


@register
class RougeL(Outcome):
    """F1 of the longest common subsequence of words, the best over gold answers."""

    name: ClassVar[str] = "rouge_l"
    source: ClassVar[str] = "ROUGE-L (Lin, 2004), in RESTL 2511.08555"

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """Against each gold answer."""
        ours = normalise(said).split()
        return max(_rouge(ours, normalise(answer).split()) for answer in answers)


def _rouge(ours: list[str], theirs: list[str]) -> float:
    common = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0  # the cell above and to the left
        for j, other in enumerate(theirs, 1):
            above = common[j]
            common[j] = before + 1 if word == other else max(above, common[j - 1])
            before = above
    if not common[-1]:
        return 0.0
    return Overlap(common[-1] / len(ours), common[-1] / len(theirs)).f1
