"""Intervals and tests: their nominal rates on simulated runs, and hand-worked values."""

import math

import numpy as np
import pytest

from eval.stats import (
    bootstrap,
    crossed,
    estimate,
    holm,
    mcnemar_p,
    paired,
    permutation_p,
    quantile,
    resampled,
    wilson,
)


def test_the_interval_of_a_mean():
    found = bootstrap([0, 1] * 50)
    assert (found.mean, found.n) == (0.5, 100)
    assert found.low == pytest.approx(0.4, abs=0.02)
    assert found.high == pytest.approx(0.6, abs=0.02)
    assert found == bootstrap([0, 1] * 50)


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


def simulated(n, gap, seed, correlation=0.6):
    """Two runs of right and wrong on the same n questions; the second is better by `gap`."""
    random = np.random.default_rng(seed)
    hardness = random.random(n)
    shared = random.random(n) < correlation
    common = random.random(n)
    draw = [np.where(shared, common, random.random(n)) for _ in range(2)]
    rate = np.clip(hardness * 0.7 + 0.1, 0, 1)
    return draw[0] < rate, draw[1] < np.clip(rate + gap, 0, 1)


def test_runs_that_differ_by_seed_only_are_told_equal_in_95_of_100():
    told = [mcnemar_p(*simulated(1000, 0.0, seed)) < 0.05 for seed in range(100)]
    assert sum(told) <= 5
    excluded = [
        paired(*(x.astype(float).tolist() for x in simulated(500, 0.0, seed)), draws=1000).excludes(
            0
        )
        for seed in range(100)
    ]
    assert sum(excluded) <= 9  # 5 expected; above 9 in 3 of 100 such tests


def test_a_planted_five_points_are_found_at_n_1000_in_80_of_100():
    told = [mcnemar_p(*simulated(1000, 0.05, seed)) < 0.05 for seed in range(100)]
    assert sum(told) >= 80


def test_mcnemar_by_hand():
    ours, theirs = [True] * 5 + [False], [False] * 5 + [True]
    assert mcnemar_p(ours, theirs) == pytest.approx(2 * 7 / 64)
    assert mcnemar_p([True], [True]) == 1
    with pytest.raises(ValueError, match="2 and 1"):
        mcnemar_p([True, False], [True])


def test_a_permutation_test_agrees_with_mcnemar_on_right_and_wrong():
    a, b = simulated(300, 0.08, 4)
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
