"""Knowing when not to answer: coverage, selective accuracy, calibration. Pure.

A question of unknown answerability counts as answerable. Figures of confidence are over the answers
that a policy gave: what it declined has no answer that could be ranked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.choice import roc_auc
from eval.metrics.text import Overlap


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said to one question.

    Attributes:
        answered: an answer was given, not an abstention.
        right: the answer was right; ignored for an abstention.
        answerable: the question has an answer.
        confidence: stated or measured, 0 to 1; None when there is none.
        declined: whether what is no answer was an act of declining; None: it was. A spent budget and
            an error are neither an answer nor an abstention.
    """

    answered: bool
    right: bool
    answerable: bool = True
    confidence: float | None = None
    declined: bool | None = None

    @property
    def abstained(self) -> bool:
        """Whether it declined."""
        return not self.answered and self.declined is not False


@dataclass(frozen=True)
class Abstention:
    """Figures over a set of replies; NaN where there is nothing to divide by.

    Attributes:
        n: questions.
        coverage: share that was answered.
        accuracy: right answers and right abstentions over all.
        selective_accuracy: right answers over answers.
        simpleqa_f1: harmonic mean of `selective_accuracy` and right answers over all (SimpleQA).
        answerable: overlap of "answered" with "answerable".
        unanswerable: overlap of "abstained" with "unanswerable".
    """

    n: int
    coverage: float
    accuracy: float
    selective_accuracy: float
    simpleqa_f1: float
    answerable: Overlap
    unanswerable: Overlap


def abstention(replies: Sequence[Reply]) -> Abstention:
    """All figures that need no confidence."""
    n = len(replies)
    answered = [reply for reply in replies if reply.answered]
    right = sum(reply.right and reply.answerable for reply in answered)
    declined = sum(reply.abstained and not reply.answerable for reply in replies)
    selective, overall = _ratio(right, len(answered)), _ratio(right, n)
    return Abstention(
        n=n,
        coverage=_ratio(len(answered), n),
        accuracy=_ratio(right + declined, n),
        selective_accuracy=selective,
        simpleqa_f1=Overlap(selective, overall).f1 if answered else 0.0,
        answerable=_overlap([r.answered for r in replies], [r.answerable for r in replies]),
        unanswerable=_overlap([r.abstained for r in replies], [not r.answerable for r in replies]),
    )


def confidence_auroc(replies: Sequence[Reply]) -> float:
    """How well confidence ranks right answers above wrong ones; NaN with one kind only."""
    known = _confident(replies)
    return roc_auc([reply.right for reply in known], _values(known))


def risk_coverage(replies: Sequence[Reply]) -> list[tuple[float, float]]:
    """(coverage, risk) when the k most confident answers are kept, for each k.

    Coverage is the share of the policy's *answers* that are kept, risk the share of wrong ones among
    them. Selective classification (Geifman and El-Yaniv 2017) ranks a prediction for every input; a
    policy that declines has none for some, so that its curve is over the others. Answers of equal
    confidence enter together: their order is not the policy's doing.
    """
    known = sorted(_confident(replies), key=lambda reply: -(reply.confidence or 0.0))
    points: list[tuple[float, float]] = []
    wrong = 0
    for count, reply in enumerate(known, 1):
        wrong += not reply.right
        if count == len(known) or known[count].confidence != reply.confidence:
            points.append((count / len(known), wrong / count))
    return points


def aurc(replies: Sequence[Reply]) -> float:
    """Area under `risk_coverage` as the mean risk over coverages; lower is better.

    It says nothing of what was declined: policies that answer different shares of the questions, or
    other ones, are not comparable by it.
    """
    area, before = 0.0, 0.0
    for coverage, risk in risk_coverage(replies):
        area, before = area + (coverage - before) * risk, coverage
    return area if before else math.nan


def reliability(replies: Sequence[Reply], bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, n) of each of `bins` equal bins of confidence that is not empty."""
    known = _confident(replies)
    placed = np.minimum((np.asarray(_values(known)) * bins).astype(int), bins - 1)
    out = []
    for number in range(bins):
        inside = [reply for reply, place in zip(known, placed, strict=True) if place == number]
        if inside:
            mean = sum(_values(inside)) / len(inside)
            out.append((mean, sum(r.right for r in inside) / len(inside), len(inside)))
    return out


def ece(replies: Sequence[Reply], bins: int = 10) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins, weighted by n."""
    found = reliability(replies, bins)
    total = sum(count for _, _, count in found)
    return sum(abs(c - a) * n for c, a, n in found) / total if total else math.nan


def _confident(replies: Sequence[Reply]) -> list[Reply]:
    known = [reply for reply in replies if reply.answered and reply.confidence is not None]
    for reply in known:
        if not 0 <= (reply.confidence or 0.0) <= 1:
            raise ValueError(f"confidence {reply.confidence} is not between 0 and 1")
    return known


def _values(known: Sequence[Reply]) -> list[float]:
    return [reply.confidence or 0.0 for reply in known]


def _overlap(said: Sequence[bool], true: Sequence[bool]) -> Overlap:
    both = sum(s and t for s, t in zip(said, true, strict=True))
    return Overlap(both / sum(said) if any(said) else 0.0, both / sum(true) if any(true) else 0.0)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
