"""Answer metrics against the published examples and their invariants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import contains, exact_match, normalise, token_f1
from eval.stats import bootstrap, paired


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("Eiffel", ["Eiffel Tower"], 0, 2 / 3),
        ("a", ["the"], 1, 1),
        ("Paris", ["London", "paris"], 1, 1),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("red red", ["red"], 0, 2 / 3),
    ],
)
def test_scores(prediction, answers, em, f1):
    assert exact_match(prediction, answers) == em
    assert token_f1(prediction, answers) == pytest.approx(f1)


@given(st.text(), st.text())
def test_exact_match_implies_full_f1(prediction, answer):
    if exact_match(prediction, [answer]):
        assert token_f1(prediction, [answer]) == 1


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(once) in (once, normalise(once))
    assert exact_match(text, [text]) == 1


def test_containment_respects_token_boundaries():
    assert contains("It was Paris, France.", "paris")
    assert not contains("comparison", "paris")
    assert not contains("anything", "")


def test_an_interval_holds_its_mean_and_narrows_with_n():
    few, many = bootstrap([0, 1] * 10), bootstrap([0, 1] * 1000)
    assert few.low < 0.5 < few.high
    assert many.high - many.low < few.high - few.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    import numpy as np

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
    with pytest.raises(ValueError, match="finite"):
        bootstrap([math.nan])
