"""Intervals and tests: their nominal rates on simulated runs, and hand-worked values."""

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from eval.compare import ALPHA, _tested
from eval.sample import score_one
from eval.stats import (
    bootstrap,
    crossed,
    estimate,
    holm,
    in_units,
    mcnemar_p,
    paired,
    permutation_p,
    quantile,
    resampled,
    wilson,
)
from tests.rl.rewards.episodes import answer, episode, task


def test_the_interval_of_a_mean():
    found = bootstrap([0, 1] * 50)
    assert (found.mean, found.n) == (0.5, 100)
    assert found.low == pytest.approx(0.4, abs=0.02)
    assert found.high == pytest.approx(0.6, abs=0.02)
    assert found == bootstrap([0, 1] * 50)


def test_a_figure_in_units_fits_a_cell_however_large_it_is():
    assert in_units(bootstrap([1.0, 1.0])) == "1.00 (no spread)"
    assert in_units(bootstrap([-2.5, 1e80] * 9)).startswith("5e+79 [")
    assert in_units(None) == ""


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]])
def test_values_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="value"):
        bootstrap(bad)


def test_a_cluster_is_one_question_however_many_samples_it_has():
    alone = bootstrap([1.0, 0.0, 1.0, 1.0])
    many = bootstrap(
        [1.0] * 5 + [0.0] * 5 + [1.0] * 5 + [1.0] * 5, clusters=[i // 5 for i in range(20)]
    )
    assert (alone.mean, alone.low, alone.high, alone.n) == (many.mean, many.low, many.high, many.n)
    uneven = bootstrap([1.0] * 9 + [0.0], clusters=[0] * 9 + [1])
    assert uneven.mean == 0.5


def test_memory_stays_bounded_and_the_draws_do_not_depend_on_it():
    values = np.random.default_rng(0).random(30_000)
    found = bootstrap(values.tolist(), draws=200)
    assert found.low < values.mean() < found.high


RIGHT, WRONG = (
    score_one("own", "squad2", task(), episode(answer(said))) for said in ("Ridley Scott", "Oslo")
)
# a question that both, only the first, only the second, or neither of two runs has right
CELLS = [([x], [y]) for x in (RIGHT, WRONG) for y in (RIGHT, WRONG)]


def simulated(n, a, b, phi, seed):
    """Which of `CELLS` each of n questions falls into: int[n].

    The runs are right on shares a and b of all questions; `phi` is the correlation of right and wrong
    over them. Two runs that have nothing but the questions in common have phi = Var(r) / (p (1 - p)),
    where r is a question's chance to be answered rightly and p its mean.
    """
    both = a * b + phi * math.sqrt(a * (1 - a) * b * (1 - b))
    shares = np.asarray([both, a - both, b - both, 1 - a - b + both])
    return np.random.default_rng(seed).choice(4, n, p=shares)


def found(count, a, b, phi, n=1000):
    """How many of `count` simulated comparisons `agent compare` calls different."""
    told = 0
    for seed in range(count):
        name, p = _tested([CELLS[cell] for cell in simulated(n, a, b, phi, seed)])
        assert name == "McNemar"
        told += p < ALPHA
    return told


def power(a, b, phi, n=1000):
    """McNemar's by the normal approximation: the difference against the share of questions on which the
    runs differ (Connor 1987)."""
    difference = abs(a - b)
    variance = a * (1 - a) + b * (1 - b) - 2 * phi * math.sqrt(a * (1 - a) * b * (1 - b))
    apart = variance + difference**2
    z = (difference * math.sqrt(n) - 1.959964 * math.sqrt(apart)) / math.sqrt(variance)
    return NormalDist().cdf(z)


def documented_power():
    """Accuracies, correlation and power of each cell of the documentation's table."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    head, _, *rows = page.split("| accuracies, % |")[1].split("\n\n")[0].splitlines()
    correlations = [float(cell) for cell in head.strip("| ").split("|")]
    for row in rows:
        first, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        a, b = (int(number) / 100 for number in first.split(" and "))
        for phi, cell in zip(correlations, cells, strict=True):
            yield a, b, phi, int(cell)


@pytest.mark.parametrize(("a", "b", "phi", "percent"), list(documented_power()))
def test_five_planted_points_at_n_1000_are_found_as_often_as_documented(a, b, phi, percent):
    """Not 80 in 100 everywhere: near 50 % with runs that are hardly correlated no test finds as many."""
    assert b - a == pytest.approx(0.05)
    assert percent == pytest.approx(100 * power(a, b, phi), abs=5)
    assert found(100, a, b, phi) == pytest.approx(percent, abs=12)


def test_where_80_in_100_are_found_is_documented():
    enough = {(a, phi) for a, _, phi, percent in documented_power() if percent >= 80}
    assert enough >= {(0.1, 0.0), (0.25, 0.4), (0.45, 0.6)}
    assert power(0.475, 0.525, 0.0) == pytest.approx(0.61, abs=0.01)


@pytest.mark.parametrize(
    ("accuracy", "phi"), [(0.3, 0.0), (0.3, 0.8), (0.5, 0.0), (0.5, 0.4), (0.5, 0.8)]
)
def test_runs_that_differ_by_chance_only_are_told_equal_in_95_of_100(accuracy, phi):
    assert found(1000, accuracy, accuracy, phi) <= 50


def test_the_interval_of_a_difference_by_chance_only_holds_zero():
    excluded = 0
    for seed in range(100):
        cells = simulated(500, 0.45, 0.45, 0.4, seed)
        both = [np.isin(cells, right).astype(float).tolist() for right in ((0, 1), (0, 2))]
        excluded += paired(*both, draws=1000).excludes(0)
    assert excluded <= 9


def test_means_of_several_samples_that_differ_by_chance_only_are_told_equal():
    """Four samples of 150 questions whose difficulty the two runs share: the permutation test's rate."""
    told = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        rate = random.beta(0.8, 0.8, 150)
        right = random.random((2, 150, 4)) < rate[:, None]
        sides = [[[RIGHT if one else WRONG for one in row] for row in run] for run in right]
        name, p = _tested(list(zip(*sides, strict=True)))
        assert name == "permutation"
        told += p < ALPHA
    assert 3 <= told <= 18  # 10 expected; outside in 1 of 100 such tests


def test_mcnemar_by_hand():
    ours, theirs = [True] * 5 + [False], [False] * 5 + [True]
    assert mcnemar_p(ours, theirs) == pytest.approx(2 * 7 / 64)
    assert mcnemar_p([True], [True]) == 1
    with pytest.raises(ValueError, match="2 and 1"):
        mcnemar_p([True, False], [True])


def test_a_permutation_test_agrees_with_mcnemar_on_right_and_wrong():
    cells = simulated(300, 0.45, 0.53, 0.4, 4)
    a, b = np.isin(cells, (0, 1)), np.isin(cells, (0, 2))
    p = permutation_p(a.astype(float).tolist(), b.astype(float).tolist())
    assert p == pytest.approx(mcnemar_p(a.tolist(), b.tolist()), abs=0.02)
    assert permutation_p([1.0, 0.0], [1.0, 0.0]) == 1


def test_wilson_by_hand():
    found = wilson(8, 10)
    assert (found.low, found.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert wilson(0, 20).low == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson(3, 2)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({}) == {}
    with pytest.raises(ValueError, match="p of x"):
        holm({"x": 1.5})


def test_an_interval_holds_its_mean_and_narrows_with_n():
    few, many = bootstrap([0, 1] * 10), bootstrap([0, 1] * 1000)
    assert few.low < 0.5 < few.high
    assert many.high - many.low < few.high - few.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        found = bootstrap(rng.random(80) < 0.3, draws=500, seed=int(rng.integers(1e9)))
        inside += found.low <= 0.3 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_paired_difference():
    assert paired([1, 1, 0], [0, 1, 0]).mean == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="paired comparison"):
        paired([1], [1, 0])


def test_crossed_of_one_run_is_the_bootstrap_of_its_questions():
    values = np.random.default_rng(3).random(200)
    one, other = crossed(values[None, :]), bootstrap(values)
    assert one.mean == pytest.approx(other.mean)
    assert one.n == 200
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.003)


def test_crossed_counts_how_much_runs_differ():
    """Runs that differ by a constant: drawing questions alone would call the mean nearly certain."""
    random = np.random.default_rng(4)
    alike = np.repeat(random.random((1, 300)) * 0.01, 6, axis=0)
    apart = alike + np.linspace(-0.3, 0.3, 6)[:, None]
    narrow, wide = crossed(alike), crossed(apart)
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)


def test_crossed_covers_the_truth_about_as_often_as_it_says():
    """Effects of runs, of questions and of both together; the true mean is 0."""
    random, held = np.random.default_rng(5), 0
    for _ in range(200):
        runs, questions = random.normal(0, 1, (8, 1)), random.normal(0, 1, (1, 60))
        held += not crossed(runs + questions + random.normal(0, 1, (8, 60)), 500).excludes(0.0)
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    ("bad", "why"),
    [([1.0, 2.0], "dimensions"), ([[]], "no value"), ([[1.0, float("nan")]], "value 1 is nan")],
)
def test_crossed_refuses_what_is_no_table(bad, why):
    with pytest.raises(ValueError, match=why):
        crossed(bad)


def test_an_estimate_is_wilsons_where_questions_are_right_or_wrong():
    assert estimate([1, 0, 1, 1]) == wilson(3, 4)
    assert estimate([1.0] * 30).low < 0.9
    assert estimate([0.0] * 30).high > 0.1
    assert estimate([1, 1, 0, 0], clusters="aabb") == wilson(1, 2)
    assert estimate([1, 0, 1, 1], clusters="aabb") == bootstrap([1, 0, 1, 1], clusters="aabb")
    with pytest.raises(ValueError, match="value"):
        estimate([])


def test_estimates_near_the_ends_cover_the_truth_where_the_bootstrap_does_not():
    random = np.random.default_rng(2)
    drawn = [(random.random(40) < 0.97).astype(float).tolist() for _ in range(300)]
    assert sum(not estimate(one).excludes(0.97) for one in drawn) / 300 > 0.92
    assert sum(not bootstrap(one, draws=200).excludes(0.97) for one in drawn) / 300 < 0.85


def test_a_resampled_mean_is_the_clustered_bootstrap():
    random = np.random.default_rng(6)
    values, clusters = random.random(120), [i // 3 for i in range(120)]

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    ours, plain = resampled(mean, clusters), bootstrap(values.tolist(), clusters=clusters)
    assert (ours.mean, ours.n) == (pytest.approx(plain.mean), 40)
    assert (ours.low, ours.high) == (
        pytest.approx(plain.low, abs=0.01),
        pytest.approx(plain.high, abs=0.01),
    )


def test_a_figure_that_is_not_there_has_no_interval():
    assert resampled(lambda weights: np.full(len(weights), np.nan), ["a", "b"]) is None
    assert resampled(lambda weights: weights[:, 0], []) is None


def test_a_quantile_counts_questions():
    figure = resampled(quantile([9.0, 1.0, 2.0, 3.0], 0.5), list("abcd"))
    assert figure.mean == 2
    assert figure.low <= 2 <= figure.high
    slow = resampled(quantile([9.0] * 10 + [1.0, 2.0, 3.0], 0.5), [*["a"] * 10, "b", "c", "d"])
    assert slow.mean == 2  # ten samples of one slow question are one question
