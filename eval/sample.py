"""One episode, scored: what was said, whether it was right, what it was shown and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.metrics import SCORERS
from eval.metrics.choice import multiple_choice
from eval.metrics.retrieval import hit_at_k, mrr, recall_at_k
from eval.metrics.usage import Usage, usage

NO_GOLD = "no gold answer"
UNSCORABLE = "the gold answer cannot be compared with"


@dataclass(frozen=True)
class Sample:
    """One scored episode.

    Attributes:
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
    answer = "" if done.status in (Status.FAILED, Status.ABSTAINED) else done.answer.strip()
    excluded, (right, em, f1, cover) = _scored_or_excluded(scorer, task, answer, done)
    shown = [
        source.id for turn in done.turns if turn.observation for source in turn.observation.sources
    ]
    gold = task.evidence if task.answerable is not False else ()
    return Sample(
        benchmark=benchmark,
        task=task.id,
        kind=task.kind,
        question=task.question,
        gold=tuple(map(str, task.answers)),
        answerable=task.answerable is not False,
        seed=done.seed,
        id=done.id,
        answer=answer,
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


def answer_scores(
    scorer: str, answer: str, golds: Sequence[str], meta: Mapping[str, Any]
) -> tuple[float, float, float, float]:
    """Headline, exact match, F1 and cover of an answer to a question that has one.

    No answer is never right, whatever the gold normalises to.

    Args:
        scorer: its name.
        answer: empty for an abstention.
        golds: accepted answers.
        meta: of the task; a choice is scored by `choices` and `right`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the gold cannot be compared with.
    """
    # a gold that cannot be scored shows itself whatever was answered
    found = SCORERS[scorer](answer, golds)
    right = found.em
    if "choices" in meta:
        right = multiple_choice(answer, meta["choices"], meta["right"])
    return (right, found.em, found.f1, found.cover) if answer else (0.0,) * 4


def _scored_or_excluded(
    scorer: str, task: Task, answer: str, done: Trajectory
) -> tuple[str, tuple[float, float, float, float]]:
    """Why there is no answer score, and the four figures: one bad gold must not end the others'."""
    nothing = (math.nan,) * 4
    if task.answerable is False:
        declined = float(done.status is not Status.FAILED and not answer)
        return "", (declined,) * 4
    if not task.answers:
        return NO_GOLD, nothing
    try:
        return "", answer_scores(scorer, answer, task.answers, task.meta)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return f"{UNSCORABLE}: {error}", nothing
