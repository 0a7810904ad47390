"""Answer metrics against the published examples and their invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import contains, exact_match, token_f1


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


def test_containment_respects_token_boundaries():
    assert contains("It was Paris, France.", "paris")
    assert not contains("comparison", "paris")
    assert not contains("anything", "")
