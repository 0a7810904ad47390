"""Did the policy keep to the action format? Penalties as published, and outcomes gated by format.

What is a violation is one rule for all rewards (`FormatRules`), read from the parsed actions and not
from text, so that tags quoted in a prompt or a passage never count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from agent.trajectory import ActionKind, Status, Trajectory, Turn
from eval.metrics import SCORERS
from rl.rewards.base import Bools, Floats, Options, Range, Reward, Values, at_end, nothing
from rl.rewards.context import Need, RewardContext
from rl.rewards.outcome import Scored
from rl.rewards.reading import thought_of
from rl.rewards.registry import register

_FINAL = (ActionKind.ANSWER, ActionKind.ABSTAIN)


class FormatRules(Options):
    """What breaks the format, besides a malformed action and a `<think>` that is not closed.

    Attributes:
        thought: where reasoning before the action is demanded: nowhere, on some turn, on every turn.
        forced: whether an answer that the runtime had to open, a budget being spent, is a violation. It
            is where a published rollout just ends there, and none where it has a last reply without
            tools (Search-R1, IKEA).
        errors: whether a call that its tool refused is one.
    """

    thought: Literal["none", "some", "every"] = "none"
    forced: bool = True
    errors: bool = False

    def violations(self, trajectory: Trajectory) -> list[int]:
        """Indices of the turns that break the format, in order.

        An episode that failed for no fault of the policy (engine or tool gone) is judged by the turns
        it has; any other must end in an answer or an abstention.
        """
        turns = trajectory.turns
        bad = {t for t, turn in enumerate(turns) if self._breaks(turn)}
        end = len(turns) - 1
        if turns and self.thought == "some" and not any(map(thought_of, turns)):
            bad.add(end)
        failed = trajectory.status is Status.FAILED
        if turns and not failed and turns[-1].action.kind not in _FINAL:
            bad.add(end)
        return sorted(bad)

    def valid(self, trajectory: Trajectory) -> bool:
        """Whether nothing breaks the format."""
        return not self.violations(trajectory)

    def _breaks(self, turn: Turn) -> bool:
        if turn.action.kind is ActionKind.MALFORMED:
            return True
        if turn.text.count("<think>") > turn.text.count("</think>"):
            return True
        if self.thought == "every" and not thought_of(turn):
            return True
        refused = turn.observation is not None and turn.observation.error is not None
        return (self.forced and turn.forced) or (self.errors and refused)


class LastReplyRules(FormatRules):
    """The rules of a method whose rollout has a last reply without tools: a forced answer is valid."""

    forced: bool = False


@register
class Format(Reward):
    """A constant for a well-formed trajectory and another for a malformed one.

    Published pairs (valid, invalid): IGPO 0, -2; IKEA 0, -1; KnowRL 1, -1; AttriLens-Mol 1, -2;
    R1-Searcher stage 2 0, -2. One violation or ten cost the same.

    Attributes:
        place: on the last turn, or on the turn of the first violation; the sum is the same.
    """

    name: ClassVar[str] = "format"
    source: ClassVar[str] = "IGPO 2510.14967 (code); IKEA 2505.07596; KnowRL 2506.19807"
    valid: float = 0.0
    invalid: float = -2.0
    place: Literal["last", "turn"] = "last"
    rules: FormatRules = FormatRules()

    @property
    def range(self) -> Range:
        """One of the two constants (0 for a trajectory without turns)."""
        return Range(min(self.valid, self.invalid, 0.0), max(self.valid, self.invalid, 0.0))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """One constant for each trajectory."""
        return [self._row(trajectory) for trajectory in group]

    def given(self, trajectory: Trajectory) -> Bools:
        """The one turn that carries the constant."""
        mask = np.zeros(len(trajectory.turns), dtype=np.bool_)
        if len(mask):
            mask[self._place(self.rules.violations(trajectory))] = True
        return mask

    def _row(self, trajectory: Trajectory) -> Floats:
        bad = self.rules.violations(trajectory)
        if not bad:
            return at_end(trajectory, self.valid)
        row = nothing(trajectory)
        row[self._place(bad)] = self.invalid
        return row

    def _place(self, bad: list[int]) -> int:
        return bad[0] if bad and self.place == "turn" else -1


def _search_r1(score: float, valid: bool, answered: bool) -> float:
    if score == 1.0:
        return 1.0 if valid else 0.8
    if valid:
        return 0.2
    return 0.1 if answered else 0.0


class Scheme(NamedTuple):
    """A published table over score and format.

    Attributes:
        table: (score, well-formed, answered) → reward.
        range: of the reward.
        options: how the answer is scored and the format judged there, unless told otherwise.
    """

    table: Callable[[float, bool, bool], float]
    range: Range
    options: dict[str, Any]


SCHEMES = {
    "igpo": Scheme(
        lambda s, valid, _: s if valid else -2.0,
        Range(-2.0, 1.0),
        {"scorer": "igpo", "score_by": "f1"},
    ),
    "search_r1": Scheme(
        _search_r1,
        Range(0.0, 1.0),
        {"scorer": "search_r1", "score_by": "em", "rules": {"forced": False}},
    ),
    "research": Scheme(
        lambda s, valid, _: (s or 0.1) if valid else 0.0,
        Range(0.0, 1.0),
        {"scorer": "hotpotqa", "score_by": "f1"},
    ),
    "r1_searcher": Scheme(
        lambda s, valid, _: s if valid else s - 2.0,
        Range(-2.0, 1.0),
        {"scorer": "hotpotqa", "score_by": "f1"},
    ),
}


@register
class FormatGatedOutcome(Scored):
    """Answer score and format in one table, as published.

    igpo: the score, or -2 when malformed. search_r1 (v0.3): right 1, right but malformed 0.8, wrong
    0.2, wrong and malformed 0.1 with an answer and 0 without; right is a score of 1. research: the
    score, 0.1 for a score of 0, or 0 when malformed. r1_searcher (stage 2): the score, less 2 when
    malformed.

    Unless told otherwise the answer is scored as the scheme's source does. igpo: F1 of sets of words,
    articles kept. search_r1: exact match without articles. research: F1 of words as often as they occur,
    without articles, yes and no only as a whole. r1_searcher: an F1, of which no more is known; it has
    HotpotQA's, on whose questions it was trained, which is that of research.

    Attributes:
        scheme: the table.
        scorer, score_by: the answer's F1 or its exact match under a scorer.
        rules: a forced answer is a violation but in search_r1.
    """

    name: ClassVar[str] = "format_gated_outcome"
    source: ClassVar[str] = (
        "IGPO 2510.14967; Search-R1 2503.09516 v0.3; ReSearch 2503.19470; R1-Searcher 2503.05592 (code)"
    )
    scorer: str = "igpo"
    scheme: Literal["igpo", "search_r1", "research", "r1_searcher"] = "igpo"
    score_by: Literal["f1", "em"] = "f1"
    rules: FormatRules = FormatRules()

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        scheme = SCHEMES.get(str(given.get("scheme", "igpo"))) if isinstance(given, dict) else None
        if scheme is None:
            return given
        rules = given.get("rules", {})
        if isinstance(rules, dict):
            rules = {**scheme.options.get("rules", {}), **rules}
        return {**scheme.options, **given, "rules": rules}

    @property
    def range(self) -> Range:
        """Of the scheme."""
        return SCHEMES[self.scheme].range

    @property
    def needs(self) -> tuple[Need, ...]:
        """Accepted answers."""
        return (Need.ANSWERS,)

    def score(self, trajectory: Trajectory) -> float:
        """The scheme's entry for this trajectory."""
        answered = bool(trajectory.turns) and trajectory.turns[-1].action.kind in _FINAL
        valid = self.rules.valid(trajectory)
        return SCHEMES[self.scheme].table(super().score(trajectory), valid, answered)

    def compare(self, trajectory: Trajectory, said: str, answers: tuple[str, ...]) -> float:
        """F1 or exact match."""
        found = SCORERS[self.scorer](said, answers)
        return found.f1 if self.score_by == "f1" else found.em
