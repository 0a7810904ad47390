"""One episode, scored: what was said, whether it was right, what it was shown and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.metrics import SCORERS
from eval.metrics.choice import multiple_choice
from eval.metrics.retrieval import hit_at_k, mrr, recall_at_k
from eval.metrics.usage import Usage, usage

NO_GOLD = "no gold answer"


@dataclass(frozen=True)
class Sample:
    """One scored episode.

    Attributes:
        abstained: whether the policy declined by its own act; no answer without one is a spent budget
            or an error.
        excluded: why it has no answer score; empty when it has.
        right: the headline score, 0 to 1: the choice's, the abstention's, else exact match.
        evidence_recall: share of the gold passages that were shown; None without gold.
        confidence: geometric-mean probability of the final reply's tokens; None when it is unknown or
            the episode gave no answer.
    """

    benchmark: str
    task: str
    kind: str
    question: str
    gold: tuple[str, ...]
    answerable: bool
    seed: int
    id: str
    answer: str
    abstained: bool
    status: str
    stop_reason: str
    error: str
    excluded: str
    right: float
    em: float
    f1: float
    cover: float
    evidence_recall: float | None
    evidence_hit: float | None
    evidence_mrr: float | None
    confidence: float | None
    usage: Usage

    @property
    def failed(self) -> bool:
        """Whether the episode ended in an error."""
        return self.status == Status.FAILED


def score_one(benchmark: str, scorer: str, task: Task, done: Trajectory) -> Sample:
    """Score one episode of a task."""
    answer = "" if done.status is Status.FAILED or done.abstained else done.answer.strip()
    excluded = "" if task.answers or task.answerable is False else NO_GOLD
    right, em, f1, cover = (
        (math.nan,) * 4 if excluded else _answer_scores(scorer, task, answer, done)
    )
    shown = [
        source.id for turn in done.turns if turn.observation for source in turn.observation.sources
    ]
    gold = task.evidence if task.answerable is not False else ()
    return Sample(
        benchmark=benchmark,
        task=task.id,
        kind=task.kind,
        question=task.question,
        gold=task.answers,
        answerable=task.answerable is not False,
        seed=done.seed,
        id=done.id,
        answer=answer,
        abstained=done.abstained,
        status=done.status,
        stop_reason=done.stop_reason,
        error=done.error if done.status is Status.FAILED else "",
        excluded=excluded,
        right=right,
        em=em,
        f1=f1,
        cover=cover,
        evidence_recall=recall_at_k(shown, gold, len(shown)) if gold else None,
        evidence_hit=hit_at_k(shown, gold, len(shown)) if gold else None,
        evidence_mrr=mrr(shown, gold) if gold else None,
        confidence=done.confidence if answer else None,
        usage=usage(done),
    )


def _answer_scores(
    scorer: str, task: Task, answer: str, done: Trajectory
) -> tuple[float, float, float, float]:
    """Headline, exact match, F1 and cover of an answer."""
    if task.answerable is False:
        return (float(done.abstained),) * 4
    if done.status is Status.FAILED:
        return (0.0,) * 4
    found = SCORERS[scorer](answer, task.answers)
    right = found.em
    if "choices" in task.meta:
        right = multiple_choice(answer, task.meta["choices"], task.meta["right"])
    return right, found.em, found.f1, found.cover
