"""Is what the policy thinks supported by what it could read? (KnowRL, zjunlp)

Source: KnowRL (arXiv 2506.19807; code zjunlp/KnowRL). The thinking is cut into atomic statements, each
is checked against passages, and the supported share enters the reward beside format and correctness.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from agent.trajectory import Trajectory
from eval.metrics import normalise, scorer
from rl.rewards.base import (
    Bools,
    Floats,
    Options,
    Range,
    Reward,
    RewardError,
    Values,
    at_end,
    at_turns,
    nothing,
    only_last,
    unit,
)
from rl.rewards.context import Need, RewardContext, task_key
from rl.rewards.format import FormatRules
from rl.rewards.reading import is_right, judged, passages, results, thought_of
from rl.rewards.registry import register

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_INTENT = re.compile(r"\b(?:i|we|let'?s|let me|maybe|perhaps|should|need to)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|no|never|none|neither|nor|without|cannot)\b|n['\u2019]t\b")
_THRESHOLDS = {"entailment": 0.3, "overlap": 0.6}
_STOP = frozenset(
    "is was are were be been of in on at by to for and or it its as with that".split()
)


def statements(text: str) -> list[str]:
    """Sentences that claim something: no questions, no plans, no guesses; each once."""
    found = (sentence.strip() for sentence in _SENTENCE.split(text))
    claims = [s for s in found if s and not s.endswith("?") and not _INTENT.search(s)]
    return [s for s in dict.fromkeys(claims) if len(_content(s)) >= 2]


def overlap_support(passage: str, statement: str) -> float:
    """Share of a statement's content words found in one sentence of the passage.

    0 where the two differ in being negated. A stand-in for an entailment model: it reads words, not
    meaning, and cannot tell who did what to whom.
    """
    words, negated = _content(statement), bool(_NEGATION.search(statement.lower()))
    if not words:
        return 0.0
    return max(
        (
            len(words & _content(sentence)) / len(words)
            for sentence in _SENTENCE.split(passage)
            if bool(_NEGATION.search(sentence.lower())) == negated
        ),
        default=0.0,
    )


def _content(text: str) -> frozenset[str]:
    plain = _NEGATION.sub(" ", text.lower())
    return frozenset(normalise(plain).split()) - _STOP


def few_facts(n: int, enough: int = 10) -> float:
    """The code's factor for saying little: exp(1 - enough / n), 1 from `enough` facts on, 0 for none."""
    if n == 0:
        return 0.0
    return 1.0 if n >= enough else math.exp(1.0 - enough / n)


class SupportCheck(Options):
    """How a statement is checked against passages.

    Attributes:
        by: `entailment` (the context's model) or `overlap` of words with one sentence.
        threshold: at or above it a passage supports. Entailment: 0.3, as KnowRL's code. Overlap, ours:
            0.6.
        top: passages that are tried, those with most words of the statement; KnowRL's code: 5.
        extract: `sentences` of the thought, or the context's fact `extractor`.
        tools: whose results are passages; what the policy wrote itself, such as its plan, supports
            nothing.
    """

    by: Literal["entailment", "overlap"] = "entailment"
    threshold: float = Field(default_factory=lambda given: _THRESHOLDS[given["by"]], gt=0, le=1)
    top: int = Field(5, ge=1)
    extract: Literal["sentences", "extractor"] = "sentences"
    tools: tuple[str, ...] = ("search", "kg", "chem")

    @property
    def needs(self) -> tuple[Need, ...]:
        """The models that are used."""
        model = (Need.ENTAILMENT,) if self.by == "entailment" else ()
        return (*model, *((Need.FACTS,) if self.extract == "extractor" else ()))

    def facts(self, text: str, context: RewardContext, trajectory: str, turn: int) -> list[str]:
        """Atomic statements of a thought."""
        if self.extract == "sentences":
            return statements(text)
        if context.facts is None:
            raise RewardError("no fact extractor", trajectory, turn)
        return list(dict.fromkeys(context.facts(text))) if text else []

    def claims(self, text: str) -> bool:
        """Whether a thought may state something: it does by sentences, or is there to extract from."""
        return bool(statements(text) if self.extract == "sentences" else text)

    def supported(
        self, fact: str, texts: Sequence[str], context: RewardContext, trajectory: str, turn: int
    ) -> bool:
        """Whether any of the passages supports a statement.

        Raises:
            RewardError: no entailment model, or its probability is not one.
        """
        model = overlap_support if self.by == "overlap" else context.entailment
        if model is None:
            raise RewardError("no entailment model", trajectory, turn)
        return any(
            unit(model(text, fact), "the entailment probability", trajectory, turn)
            >= self.threshold
            for text in self._nearest(fact, texts)
        )

    def _nearest(self, fact: str, texts: Sequence[str]) -> list[str]:
        words = _content(fact)
        return sorted(texts, key=lambda text: -len(words & _content(text)))[: self.top]


class _Thoughts(Reward):
    """Checks the thoughts of each turn against all passages retrieved and given; see `Factuality`."""

    check: SupportCheck = SupportCheck()
    enough: int = Field(10, ge=0)

    def support(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        """float64[turns]: each turn's part of the supported share, after the factor for few facts.

        Statements that are repeated count once. Without a passage nothing is supported.
        """
        found = results(trajectory, self.check.tools)
        texts = [text for seen in found for text in passages(seen.observation)]
        texts = list(dict.fromkeys([*texts, *context.knowledge.get(task_key(trajectory.task), ())]))
        row, said = nothing(trajectory), set[str]()
        for t, turn in enumerate(trajectory.turns):
            facts = self.check.facts(thought_of(turn), context, trajectory.id, t)
            new = [fact for fact in facts if normalise(fact) not in said]
            said |= {normalise(fact) for fact in new}
            row[t] = sum(
                self.check.supported(fact, texts, context, trajectory.id, t) for fact in new
            )
        factor = few_facts(len(said), self.enough) if self.enough else 1.0
        return row * factor / len(said) if said else row


@register
class Factuality(_Thoughts):
    """Supported share of the statements in the thoughts.

    Attributes:
        check: how a statement is checked.
        enough: statements from which on the share counts in full (the code's factor); 0 for no
            factor, as in the paper.
        place: the share on the last turn, or each turn's part on the turn itself; the same sum.
    """

    name: ClassVar[str] = "factuality"
    source: ClassVar[str] = "KnowRL (zjunlp) 2506.19807, r_fact; factor: code"
    place: Literal["last", "turns"] = "turns"

    @property
    def range(self) -> Range:
        """A share."""
        return Range(0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of the check."""
        return self.check.needs

    def given(self, trajectory: Trajectory) -> Bools:
        """The last turn, or the turns whose thought states something."""
        if self.place == "last":
            return only_last(trajectory)
        told = (t for t, turn in enumerate(trajectory.turns) if self.check.claims(thought_of(turn)))
        return at_turns(trajectory, told)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The share, by turn or at the end."""
        rows = [self.support(trajectory, context) for trajectory in group]
        if self.place == "turns":
            return rows
        return [at_end(t, float(row.sum())) for t, row in zip(group, rows, strict=True)]


@register
class FactualReasoning(_Thoughts):
    """KnowRL's whole reward, on the last turn: format, correctness and factuality.

    Format is 1 or -1. Correctness is 2 for a right answer, `refusal` for declining, -1 for a wrong one
    or none. `paper` adds factuality always; `code` adds it only to a wrong answer that is no refusal,
    and so never above a right one. Thoughts of a policy that declines earn nothing in either.

    Attributes:
        check: how a statement is checked.
        enough: statements from which on the share counts in full (the code's factor); 0 for none.
        form: the paper's sum or the code's gate.
        refusal: of declining, whether or not the question has an answer; -1 in the paper's ablation.
        correctness: exact match under `scorer`, or the context's judge of the answer's meaning.
    """

    name: ClassVar[str] = "factual_reasoning"
    source: ClassVar[str] = "KnowRL (zjunlp) 2506.19807; `code`: zjunlp/KnowRL"
    last_turn_only: ClassVar[bool] = True
    form: Literal["code", "paper"] = "code"
    refusal: float = Field(1.0, ge=-1, le=2)
    correctness: Literal["match", "judge"] = "match"
    scorer: str = "squad"
    rules: FormatRules = FormatRules(thought="some")

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        return scorer(name).name

    @property
    def range(self) -> Range:
        """From malformed and wrong to well-formed and right."""
        return Range(-2.0, 3.0 if self.form == "code" else 4.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers, and the models that are used."""
        judge = (Need.JUDGE,) if self.correctness == "judge" else ()
        return (Need.ANSWERS, *judge, *self.check.needs)

    def combined(self, valid: bool, correct: float, refused: bool, fact: float) -> float:
        """The table: format and correctness scores with factuality by the form."""
        wrong = correct < 0 and not refused
        added = fact if wrong or (self.form == "paper" and not refused) else 0.0
        return (1.0 if valid else -1.0) + correct + added

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The combination for each trajectory."""
        return [at_end(trajectory, self._value(trajectory, context)) for trajectory in group]

    def _value(self, trajectory: Trajectory, context: RewardContext) -> float:
        refused = trajectory.abstained
        right = self._right(trajectory, context)
        correct = self.refusal if refused else 2.0 if right else -1.0
        fact = float(np.sum(self.support(trajectory, context)))
        return self.combined(self.rules.valid(trajectory), correct, refused, fact)

    def _right(self, trajectory: Trajectory, context: RewardContext) -> bool:
        matched = is_right(trajectory, self.scorer)
        if self.correctness == "match" or not trajectory.answer or not trajectory.task.answers:
            return matched
        meaning = f"The answer means the same as: {' / '.join(trajectory.task.answers)}"
        text = f"Question: {trajectory.task.question}\nAnswer: {trajectory.answer}"
        return judged(trajectory, meaning, text, context) >= 0.5
