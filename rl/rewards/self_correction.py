"""Does the policy know what its observations are worth, and does it recover from bad ones?

Sources: ReSeek (arXiv 2510.00568), judge reward in its first two versions (v1) and its third (v3);
`observation_utility` and `recovery` are this project's. The ideal verdict reads the gold answer or the
gold evidence: a training signal, never to be run at evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from agent.trajectory import ActionKind, Trajectory
from eval.metrics import contains, normalise
from rl.rewards.base import (
    Bools,
    Floats,
    Options,
    Range,
    Reward,
    RewardError,
    Values,
    at_turns,
    nothing,
    saturated,
    unit,
)
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import Result, gold, passages, results, shown_ids, verdicts
from rl.rewards.registry import register
from tools.base import Verdict

_CLOSED = ("yes", "no", "true", "false")


class Usefulness(Options):
    """How useful a result is for its question, 0 to 1, by one of three references.

    reranker: relevance of the passages to the gold answer (ReSeek: bge-reranker-large, 0.7).
    evidence: whether a gold passage is shown. answer: whether a gold answer occurs in the text.

    A question that has no answer has no useful result. Gold answers that are closed (yes, no) or
    short say nothing about a passage: there gold evidence decides, and without it nothing does.

    Attributes:
        by: the reference.
        threshold: a result is useful when its score is above this.
        pool: passages of a result scored each, the best counts, or joined into one text.
        short: gold answers of fewer characters than this, normalised, are short.
        tools: that retrieve. What others give back, such as the policy's own plan, is no result: it is
            neither useful nor useless, and a verdict on it is on nothing.
    """

    by: Literal["reranker", "evidence", "answer"] = "reranker"
    threshold: float = Field(0.7, ge=0, lt=1)
    pool: Literal["max", "joint"] = "max"
    short: int = Field(3, ge=0)
    tools: tuple[str, ...] = ("search", "kg")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Gold answers and, by reference, a reranker or gold evidence."""
        needs = {
            "reranker": (Need.ANSWERS, Need.RERANKER),
            "evidence": (Need.EVIDENCE,),
            "answer": (Need.ANSWERS,),
        }
        return needs[self.by]

    def scores(self, trajectory: Trajectory, context: RewardContext) -> dict[int, float | None]:
        """Turn of each result to its usefulness; None where nothing can tell.

        Raises:
            RewardError: no gold answer, gold evidence or reranker where it is needed, or a relevance
                outside 0..1.
        """
        found = results(trajectory, self.tools)
        return {seen.turn: self._score(trajectory, seen, context) for seen in found}

    def decided(self, trajectory: Trajectory) -> set[int]:
        """Turns of the results that this reference can judge."""
        task = trajectory.task
        telling = self.by == "evidence" or bool(task.evidence)
        telling = telling or any(self._telling(answer) for answer in task.answers)
        return {
            seen.turn
            for seen in results(trajectory, self.tools)
            if telling or task.answerable is False or not passages(seen.observation)
        }

    def _score(self, trajectory: Trajectory, seen: Result, context: RewardContext) -> float | None:
        task, texts = trajectory.task, passages(seen.observation)
        if task.answerable is False:
            return 0.0
        if self.by == "evidence" and not task.evidence:
            raise RewardError(f"task {task.id} has no gold evidence", trajectory.id, seen.turn)
        if not texts:
            return 0.0
        if self.by == "evidence":
            return _shows_evidence(trajectory, seen)
        answers = [a for a in gold(trajectory) if self._telling(a)]
        if not answers:
            return _shows_evidence(trajectory, seen) if task.evidence else None
        if self.by == "answer":
            return float(any(contains(text, answer) for text in texts for answer in answers))
        return self._relevance(answers, texts, context, trajectory, seen.turn)

    def _telling(self, answer: str) -> bool:
        plain = normalise(answer)
        return len(plain) >= self.short and plain not in _CLOSED

    def _relevance(
        self,
        answers: list[str],
        texts: list[str],
        context: RewardContext,
        trajectory: Trajectory,
        turn: int,
    ) -> float:
        if context.reranker is None:
            raise RewardError("no reranker", trajectory.id, turn)
        shown = texts if self.pool == "max" else ["\n".join(texts)]
        rows = [list(context.reranker(answer, shown)) for answer in answers]
        if any(len(row) != len(shown) for row in rows):
            what = f"the reranker gave {len(rows[0])} scores for {len(shown)} passages"
            raise RewardError(what, trajectory.id, turn)
        what = "the reranker's relevance"
        return max(unit(score, what, trajectory.id, turn) for row in rows for score in row)


def _shows_evidence(trajectory: Trajectory, seen: Result) -> float:
    return float(bool(shown_ids(seen.observation) & set(trajectory.task.evidence)))


def right_verdicts(trajectory: Trajectory) -> list[bool]:
    """Of each first verdict on a result, whether it is the ideal one by gold evidence; of a task without
    any, none are told."""
    ideal = Usefulness(by="evidence")
    if not trajectory.task.evidence and trajectory.task.answerable is not False:
        return []
    scores = ideal.scores(trajectory, RewardContext())
    return [
        (given.verdict is Verdict.HELPFUL) == ((scores[given.of] or 0.0) > ideal.threshold)
        for given in verdicts(trajectory)
        if given.of in scores
    ]


class VerdictTable(NamedTuple):
    """Rewards of a verdict against the ideal one."""

    match: float
    accepted_useless: float
    rejected_useful: float

    def __call__(self, verdict: Verdict, useful: bool) -> float:
        """The entry for a verdict."""
        if (verdict is Verdict.HELPFUL) == useful:
            return self.match
        return self.rejected_useful if useful else self.accepted_useless


VERDICTS = {"v1": VerdictTable(0.3, -0.3, -0.3), "v3": VerdictTable(0.3, -0.6, -0.3)}


@register
class JudgeVerdict(Reward):
    """Whether each verdict is the ideal one, on the turn of the verdict.

    Only the first verdict on a result counts. As published, right verdicts add up without end: four
    of them outweigh the answer. So the running total is held within `floor` and `cap`, or the verdicts
    are averaged.

    Attributes:
        variant: v1 is +0.3 or -0.3; v3 costs 0.6 for accepting a useless result.
        ideal: where the ideal verdict comes from.
        total: `capped`, `mean` over the judged results, or `sum` (as published).
        cap, floor: of the running total, where it is capped.
    """

    name: ClassVar[str] = "judge_verdict"
    source: ClassVar[str] = "ReSeek 2510.00568, judge reward (v1: figure; v3: text)"
    variant: Literal["v1", "v3"] = "v3"
    ideal: Usefulness = Usefulness()
    total: Literal["capped", "mean", "sum"] = "capped"
    cap: float = Field(0.6, ge=0)
    floor: float = Field(-1.2, le=0)

    @property
    def range(self) -> Range:
        """The cap and floor, or the table's bounds for a mean."""
        table = VERDICTS[self.variant]
        bounds = {
            "capped": Range(self.floor, self.cap),
            "mean": Range(min(table), max(table)),
            "sum": Range(-np.inf, np.inf),
        }
        return bounds[self.total]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of the ideal verdict."""
        return self.ideal.needs

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns of first verdicts on results whose ideal verdict can be told."""
        decided = self.ideal.decided(trajectory)
        return at_turns(trajectory, (v.turn for v in verdicts(trajectory) if v.of in decided))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """The table's entry on each turn that judges."""
        return [self._row(trajectory, context) for trajectory in group]

    def _row(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        given, table = list(verdicts(trajectory)), VERDICTS[self.variant]
        row = nothing(trajectory)
        if not given:
            return row
        scores = self.ideal.scores(trajectory, context)
        known = [(v, score) for v in given if (score := scores.get(v.of)) is not None]
        for verdict, score in known:
            row[verdict.turn] = table(verdict.verdict, score > self.ideal.threshold)
        if self.total == "mean":
            return row / max(len(known), 1)
        return saturated(row, self.floor, self.cap) if self.total == "capped" else row


@register
class ObservationUtility(Reward):
    """What each result adds over the best one before it, on the turn of the call.

    By evidence: the share of gold passages shown for the first time. Otherwise the rise of the best
    usefulness so far. Both telescope: showing the same thing again adds nothing.
    """

    name: ClassVar[str] = "observation_utility"
    source: ClassVar[str] = "own, after the utility reward of ReSeek 2510.00568 v1"
    ideal: Usefulness = Usefulness()

    @property
    def range(self) -> Range:
        """At most all of the evidence, or a usefulness of 1."""
        return Range(0.0, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of the usefulness."""
        return self.ideal.needs

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns of calls whose result can be judged; 0 there means that it added nothing."""
        return at_turns(trajectory, self.ideal.decided(trajectory))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Increments of evidence or of usefulness."""
        return [self._row(trajectory, context) for trajectory in group]

    def _row(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        row, best = nothing(trajectory), 0.0
        scores = self.ideal.scores(trajectory, context)
        if self.ideal.by == "evidence" and trajectory.task.answerable is not False:
            return _new_evidence(trajectory, self.ideal.tools)
        for turn, score in scores.items():
            row[turn] = max((score or 0.0) - best, 0.0)
            best = max(best, score or 0.0)
        return row


def _new_evidence(trajectory: Trajectory, tools: Collection[str]) -> Floats:
    row, wanted = nothing(trajectory), set(trajectory.task.evidence)
    left = set(wanted)
    for seen in results(trajectory, tools):
        found = left & shown_ids(seen.observation)
        row[seen.turn] = len(found) / len(wanted)
        left -= found
    return row


@register
class Recovery(Reward):
    """A bad turn costs, and correcting it gives part of that back on the turn that corrects.

    Bad: a malformed action (corrected by the next well-formed one), or a call that failed or found
    nothing useful (corrected by the next useful result). As no more comes back than was paid, erring
    on purpose never pays. On a question that has no answer only failures are bad, and any result
    corrects them: nothing useful can be found there.

    Attributes:
        penalty: of a bad turn.
        refund: share of the outstanding penalties that a correction gives back.
        floor: the running total never falls below this.
    """

    name: ClassVar[str] = "recovery"
    source: ClassVar[str] = "own, after ReSeek 2510.00568"
    penalty: float = Field(0.2, ge=0)
    refund: float = Field(0.5, ge=0, le=1)
    floor: float = Field(-0.6, le=0)
    ideal: Usefulness = Usefulness()

    @property
    def range(self) -> Range:
        """Never above 0."""
        return Range(self.floor, 0.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of the usefulness."""
        return self.ideal.needs

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns that can be bad: malformed ones and calls; 0 there means that nothing was wrong.

        A turn that gets something back speaks too, as its value is not 0.
        """
        failed = (seen.turn for seen in results(trajectory) if seen.observation.error is not None)
        turns = trajectory.turns
        bad = (t for t, turn in enumerate(turns) if turn.action.kind is ActionKind.MALFORMED)
        return at_turns(trajectory, {*self.ideal.decided(trajectory), *failed, *bad})

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Penalties and refunds."""
        return [self._row(trajectory, context) for trajectory in group]

    def _row(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        row, malformed, useless = nothing(trajectory), 0.0, 0.0
        good = self._good(trajectory, context)
        for t, turn in enumerate(trajectory.turns):
            if turn.action.kind is ActionKind.MALFORMED:
                cost = self._room(row)
                row[t], malformed = -cost, malformed + cost
                continue
            back, malformed = malformed, 0.0
            cost = 0.0
            if good.get(t) is True:
                back, useless = back + useless, 0.0
            elif good.get(t) is False:
                cost = self._room(row, back)
                useless += cost
            row[t] = self.refund * back - cost
        return row

    def _room(self, row: Floats, back: float = 0.0) -> float:
        """What a bad turn may still cost."""
        return min(self.penalty, max(float(row.sum()) + self.refund * back - self.floor, 0.0))

    def _good(self, trajectory: Trajectory, context: RewardContext) -> dict[int, bool]:
        """Turn of each result to whether it is good; undecided ones are left out."""
        unanswerable = trajectory.task.answerable is False
        good: dict[int, bool] = {}
        scores = self.ideal.scores(trajectory, context)
        for seen in results(trajectory):
            score = scores.get(seen.turn)
            if seen.observation.error is not None or unanswerable:
                good[seen.turn] = seen.observation.error is None
            elif score is not None:
                good[seen.turn] = score > self.ideal.threshold
        return good

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.penalty > -self.floor:
            raise ValueError("floor must leave room for one penalty")
        return self
