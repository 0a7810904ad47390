import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tools.search.fusion import fuse_rankings, unique_rows
from tools.search.lexical import top_rows

rankings = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), max_size=4)


@given(rankings, st.integers(1, 100))
def test_fusion_is_the_sum_of_reciprocal_ranks(ranked, k):
    fused = dict(fuse_rankings(ranked, k))
    rows = {row for ranking in ranked for row in ranking}
    assert fused.keys() == rows
    for row in rows:
        parts = [1 / (k + ranking.index(row) + 1) for ranking in ranked if row in ranking]
        assert abs(fused[row] - sum(parts)) < 1e-12


@given(rankings, st.integers(1, 100))
def test_fusion_is_sorted_with_ties_by_row_and_ignores_the_order_of_rankings(ranked, k):
    fused = fuse_rankings(ranked[:2], k)
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))
    assert fused == fuse_rankings(ranked[:2][::-1], k)


@given(st.lists(st.integers(0, 30), unique=True, max_size=20), st.integers(1, 100))
def test_one_ranking_keeps_its_order(ranking, k):
    assert [row for row, _ in fuse_rankings([ranking, ranking], k)] == ranking


@given(st.lists(st.integers(0, 9), min_size=10, max_size=10), st.permutations(range(10)))
def test_each_text_appears_once_at_its_best_rank(groups, order):
    canonical = np.array([groups.index(group) for group in groups], np.int32)
    rows = unique_rows(order, canonical)
    assert len(set(rows)) == len(rows) == len(set(groups))
    best = sorted(
        rows, key=lambda row: min(order.index(i) for i in range(10) if canonical[i] == row)
    )
    assert rows == best


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=30), st.integers(1, 40))
def test_top_rows_are_positive_sorted_and_complete(values, k):
    rows, scores = top_rows(np.array(values, np.float32), k)
    positive = sum(value > 0 for value in values)
    assert len(rows) <= min(k, positive)
    assert scores.tolist() == sorted((v for v in values if v > 0), reverse=True)[:k]
    assert all(values[row] == score for row, score in zip(rows, scores, strict=True))
    pairs = list(zip((-scores).tolist(), rows.tolist(), strict=True))
    assert pairs == sorted(pairs)
