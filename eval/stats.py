"""Intervals, paired tests and corrections: how sure a figure is.

The unit of account is the question. Several samples of one question are one cluster: they are drawn
together, so that more samples of the same questions do not pretend to be more questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAX_CELLS = 2_000_000  # of one block of bootstrap draws: bounds the memory
_LONG = 1e6  # figures from here on are told with a power of ten


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over `n` questions."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:5.1f} [{100 * self.low:5.1f}, {100 * self.high:5.1f}]"

    @property
    def shown(self) -> str:
        """In percent, for a cell of a table; one that came out the same in every draw has no interval to
        show."""
        if self.low == self.high:
            return f"{100 * self.mean:.1f} (no spread)"
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def in_percent(value: Interval | None) -> str:
    """A figure with its interval, for a cell of a table; empty for none."""
    return "" if value is None else value.shown


def in_units(value: Interval | None) -> str:
    """The same in the figure's own unit."""
    if value is None:
        return ""
    mean, low, high = map(_short, (value.mean, value.low, value.high))
    return f"{mean} (no spread)" if value.low == value.high else f"{mean} [{low}, {high}]"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < _LONG else f"{value:.3g}"


def bootstrap(
    values: Sequence[float],
    draws: int = 10_000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean with its percentile-bootstrap interval.

    With clusters, whole clusters are drawn and `n` is their number; the mean is that of the means of
    the clusters, so that a question with more samples weighs no more.

    Args:
        values: float[m].
        draws: bootstrap samples.
        seed: of the draws.
        clusters: the question of each value; None when each value is a question of its own.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = _finite(values)
    if clusters is not None:
        data = _cluster_means(data, clusters)
    means = _resampled_means(data, draws, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), data.size)


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """The mean with its interval: Wilson's where each question's value is 0 or 1, else the bootstrap's.

    Resampling values that are all alike calls their mean certain, [0, 0] or [100, 100]; Wilson's
    interval of a proportion does not.

    Args:
        values: float[m].
        clusters: as in `bootstrap`.

    Raises:
        ValueError: as `bootstrap`.
    """
    data = _finite(values)
    means = data if clusters is None else _cluster_means(data, clusters)
    if np.isin(means, (0.0, 1.0)).all():
        return wilson(int(means.sum()), means.size)
    return bootstrap(values, clusters=clusters)


Weights = npt.NDArray[np.float64]
Statistic = Callable[[Weights], Weights]


def resampled(
    statistic: Statistic, clusters: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> Interval | None:
    """A figure that is no mean, with its percentile-bootstrap interval over questions.

    Args:
        statistic: float[d, m] weights of the m values to float[d] figures; NaN where there is none.
            Each question weighs 1, shared evenly by its values, times how often it was drawn.
        clusters: the question of each value.
        draws: bootstrap samples; those without a figure are left out.
        seed: of the draws.

    Returns:
        None when the figure itself is not a number; `n` is the number of questions.
    """
    names = list(dict.fromkeys(clusters))
    if not names:
        return None
    places = {name: place for place, name in enumerate(names)}
    question = np.asarray([places[cluster] for cluster in clusters])
    share = 1.0 / np.bincount(question)[question]
    figure = float(statistic(share[None, :])[0])
    if math.isnan(figure):
        return None
    random, block = np.random.default_rng(seed), max(1, _MAX_CELLS // len(clusters))
    even, found = np.full(len(names), 1.0 / len(names)), []
    for first in range(0, draws, block):
        drawn = random.multinomial(len(names), even, min(block, draws - first))
        found.append(statistic(drawn[:, question] * share))
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    return Interval(figure, float(low), float(high), len(names))


def quantile(values: Sequence[float], share: float) -> Statistic:
    """A statistic of `resampled`: the smallest value with `share` of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    ranked = np.asarray(values, dtype=np.float64)[order]

    def figure(weights: Weights) -> Weights:
        below = np.cumsum(weights[:, order], axis=1)
        reached = below >= share * below[:, -1:] - 1e-9
        return np.asarray(ranked[reached.argmax(axis=1)])

    return figure


def paired(
    ours: Sequence[float],
    theirs: Sequence[float],
    draws: int = 10_000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean difference `ours - theirs` on the same questions, with its interval.

    Raises:
        ValueError: different numbers of questions, or as `bootstrap`.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired comparison of {len(ours)} and {len(theirs)} questions")
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return bootstrap(differences, draws, seed, clusters)


def crossed(values: npt.ArrayLike, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean of runs crossed with questions, with a two-way percentile-bootstrap interval: each draw
    takes runs and questions with replacement (the pigeonhole bootstrap, Owen 2007).

    How much runs differ is badly known from a few of them: where that is most of what is uncertain, the
    interval of three runs holds the truth in about three cases of four only. `n` counts questions.

    Args:
        values: float[runs, questions].
        draws: bootstrap samples.
        seed: of the draws.

    Raises:
        ValueError: no values, one that is not finite, or not one row a run.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 2:
        raise ValueError(f"values have {data.ndim} dimensions, not 2: runs, questions")
    _finite(data.ravel())
    random, (runs, questions) = np.random.default_rng(seed), data.shape
    weigh = [random.multinomial(n, np.full(n, 1 / n), draws) / n for n in (runs, questions)]
    means = np.einsum("dr,rq,dq->d", weigh[0], data, weigh[1], optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), questions)


def permutation_p(ours: Sequence[float], theirs: Sequence[float], draws: int = 10_000) -> float:
    """Two-sided p of the mean difference when the two labels of each question may be swapped.

    One is added to both counts, so that it is never 0 (Phipson and Smyth 2010).

    Raises:
        ValueError: as `paired`.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired comparison of {len(ours)} and {len(theirs)} questions")
    data = _finite([a - b for a, b in zip(ours, theirs, strict=True)])
    data = data[data != 0]
    if not data.size:
        return 1.0
    random, seen, least = np.random.default_rng(0), 0, abs(data.sum()) - 1e-12
    block = max(1, _MAX_CELLS // data.size)
    for first in range(0, draws, block):
        signs = random.integers(0, 2, (min(block, draws - first), data.size), dtype=np.int8)
        seen += int((abs(((2.0 * signs - 1) * data).sum(axis=1)) >= least).sum())
    return (seen + 1) / (draws + 1)


def mcnemar_p(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact two-sided McNemar test that both are right equally often on the same questions.

    Raises:
        ValueError: different numbers of questions.
    """
    from scipy.stats import binomtest

    if len(ours) != len(theirs):
        raise ValueError(f"paired comparison of {len(ours)} and {len(theirs)} questions")
    won = sum(bool(a) and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(bool(b) and not a for a, b in zip(ours, theirs, strict=True))
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def wilson(right: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a proportion.

    Raises:
        ValueError: n is 0, or `right` is not between 0 and n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"{right} right of {n}")
    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Interval(right / n, float(found.low), float(found.high), n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment over several tests; order as given.

    Raises:
        ValueError: a p that is not between 0 and 1.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p of {name} is {p}")
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def _finite(values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("there is no value")
    for place in np.flatnonzero(~np.isfinite(data))[:1]:
        raise ValueError(f"value {place} is {data[place]}")
    return data


def _cluster_means(
    data: npt.NDArray[np.float64], clusters: Sequence[Hashable]
) -> npt.NDArray[np.float64]:
    if len(clusters) != data.size:
        raise ValueError(f"{data.size} values in {len(clusters)} clusters")
    grouped: dict[Hashable, list[float]] = {}
    for cluster, value in zip(clusters, data, strict=True):
        grouped.setdefault(cluster, []).append(float(value))
    return np.asarray([math.fsum(group) / len(group) for group in grouped.values()])


def _resampled_means(
    data: npt.NDArray[np.float64], draws: int, seed: int
) -> npt.NDArray[np.float64]:
    random, block = np.random.default_rng(seed), max(1, _MAX_CELLS // data.size)
    parts = [
        data[random.integers(0, data.size, (min(block, draws - first), data.size))].mean(axis=1)
        for first in range(0, draws, block)
    ]
    return np.concatenate(parts)
