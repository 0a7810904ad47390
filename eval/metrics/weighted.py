"""Figures of replies that have weights: what a clustered bootstrap resamples.

Each function gives one that turns weights, float[d, m] for d draws of the m replies, into float[d]
figures. With weights of 1 those of abstention and confidence equal those of `eval.metrics.abstention`;
those of confidence take answers alone, each with its confidence. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from eval.metrics.abstention import Reply

Weights: TypeAlias = npt.NDArray[np.float64]
Figure: TypeAlias = Callable[[Weights], Weights]


def f1(said: Sequence[bool], true: Sequence[bool]) -> Figure:
    """F1 of "said" with "true"; NaN where nothing is true: there is nothing to find."""
    a, b = np.asarray(said, dtype=float), np.asarray(true, dtype=float)

    def figure(weights: Weights) -> Weights:
        whole = np.where(weights @ b > 0, weights @ (a + b), np.nan)
        return np.asarray(2 * (weights @ (a * b)) / whole)

    return figure


def kappa(a: Sequence[bool], b: Sequence[bool]) -> Figure:
    """Cohen's kappa of two judges; NaN where both say one and the same of all, as chance alone does."""
    one, other = np.asarray(a, dtype=float), np.asarray(b, dtype=float)

    def figure(weights: Weights) -> Weights:
        share = weights / weights.sum(axis=1, keepdims=True)
        p, q = share @ one, share @ other
        by_chance = p * q + (1 - p) * (1 - q)
        beyond = np.where(by_chance < 1 - 1e-12, 1 - by_chance, np.nan)
        return np.asarray((share @ (one == other) - by_chance) / beyond)

    return figure


def simpleqa_f1(replies: Sequence[Reply]) -> Figure:
    """Harmonic mean of right answers over answers and right answers over all (SimpleQA)."""
    answered = np.asarray([r.answered for r in replies], dtype=float)
    right = np.asarray([r.answered and r.right and r.answerable for r in replies], dtype=float)

    def figure(weights: Weights) -> Weights:
        return np.asarray(2 * (weights @ right) / (weights @ answered + weights.sum(axis=1)))

    return figure


def auroc(replies: Sequence[Reply]) -> Figure:
    """`confidence_auroc`; NaN with one kind only."""
    return roc_auc([r.right for r in replies], [r.confidence or 0.0 for r in replies])


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> Figure:
    """Area under the ROC curve; NaN with one class only."""
    values = np.asarray(scores, dtype=float)
    order = np.argsort(values, kind="stable")
    positive = np.asarray(labels, dtype=float)[order]
    _, first, group = np.unique(values[order], return_index=True, return_inverse=True)

    def figure(weights: Weights) -> Weights:
        good, bad = weights[:, order] * positive, weights[:, order] * (1 - positive)
        ties = np.add.reduceat(bad, first, axis=1)  # of each distinct confidence
        beaten = np.cumsum(ties, axis=1) - ties / 2
        pairs = good.sum(axis=1) * bad.sum(axis=1)
        won = (good * beaten[:, group]).sum(axis=1)
        return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)

    return figure


def rmse(errors: Sequence[float]) -> Figure:
    """Root of the mean squared error, in the unit of the errors."""
    squares = np.square(np.asarray(errors, dtype=float))
    return lambda weights: np.asarray(np.sqrt(weights @ squares / weights.sum(axis=1)))


def deviation(values: Sequence[float]) -> Figure:
    """Standard deviation of values: the RMSE of saying their mean of all."""
    data = np.asarray(values, dtype=float)
    centred = data - data.mean()

    def figure(weights: Weights) -> Weights:
        share = weights / weights.sum(axis=1, keepdims=True)
        return np.asarray(np.sqrt(np.maximum(share @ centred**2 - (share @ centred) ** 2, 0.0)))

    return figure


def aurc(replies: Sequence[Reply]) -> Figure:
    """`aurc`."""
    confidence = np.asarray([r.confidence for r in replies], dtype=float)
    order = np.argsort(-confidence, kind="stable")
    wrong = np.asarray([not r.right for r in replies], dtype=float)[order]
    _, first = np.unique(-confidence[order], return_index=True)

    def figure(weights: Weights) -> Weights:
        ranked = weights[:, order]
        size = np.add.reduceat(ranked, first, axis=1)
        failed = np.cumsum(np.add.reduceat(ranked * wrong, first, axis=1), axis=1)
        given = np.cumsum(size, axis=1)
        risk = failed / np.where(given > 0, given, 1.0)
        return np.asarray((size * risk).sum(axis=1) / given[:, -1])

    return figure


def ece(replies: Sequence[Reply], bins: int = 10) -> Figure:
    """`ece`."""
    confidence = np.asarray([r.confidence for r in replies], dtype=float)
    gap = confidence - np.asarray([r.right for r in replies], dtype=float)
    placed = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = np.eye(bins)[placed]

    def figure(weights: Weights) -> Weights:
        return np.asarray(np.abs((weights * gap) @ inside).sum(axis=1) / weights.sum(axis=1))

    return figure
