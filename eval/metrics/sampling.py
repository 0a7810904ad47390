"""Scores over several samples of one question. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from eval.metrics.text import Normaliser, normalise


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that `k` of the samples, drawn without replacement, hold a right one: unbiased.

    Source: Chen et al. 2021, 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: k is not between 1 and the number of samples.
    """
    _check(samples, right, k)
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def majority(answers: Sequence[str], by: Normaliser = normalise) -> str:
    """The most frequent answer after normalisation, as first written; earlier answers win ties.

    An abstention is the empty answer and may win.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no answers to take the majority of")
    counts = Counter(by(answer) for answer in answers)
    most = max(counts.values())
    return next(answer for answer in answers if counts[by(answer)] == most)


def _check(samples: int, right: int, k: int) -> None:
    if not 0 <= right <= samples:
        raise ValueError(f"{right} right of {samples} samples")
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} with {samples} samples")
