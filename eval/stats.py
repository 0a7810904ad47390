"""Intervals on means and on paired differences, by bootstrap over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval over `n` questions."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:5.1f} [{100 * self.low:5.1f}, {100 * self.high:5.1f}]"


def bootstrap(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean of `values` with its interval.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError("bootstrap needs at least one value, all of them finite")
    picks = np.random.default_rng(seed).integers(0, data.size, (draws, data.size))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), data.size)


def paired(ours: Sequence[float], theirs: Sequence[float], draws: int = 10_000) -> Interval:
    """The mean difference `ours - theirs` on the same questions, with its interval.

    Raises:
        ValueError: different numbers of questions.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired comparison of {len(ours)} and {len(theirs)} questions")
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)], draws)
