"""Token trees: what is shared, what is not, and that every sequence can be read off again."""

import inspect
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.tree import build_tree

sequences = st.lists(
    st.lists(st.integers(0, 2), max_size=8).map(lambda x: np.array(x, dtype=np.int64)), max_size=8
)


@settings(deadline=None)
@given(sequences)
def test_every_sequence_is_a_path(found):
    tree = build_tree(found)
    before = tree.predictors()
    for sequence, rows in zip(found, tree.rows, strict=True):
        assert (tree.ids[rows] == sequence).all()
        assert (tree.positions[rows] == np.arange(len(sequence))).all()
        assert (before[rows[1:]] == rows[:-1]).all()
        assert not len(rows) or before[rows[0]] == -1


@settings(deadline=None)
@given(sequences)
def test_a_beginning_is_laid_down_once(found):
    """As many tokens as there are distinct beginnings: nothing twice, nothing lost."""
    tree = build_tree(found)
    beginnings = {tuple(s[: n + 1].tolist()) for s in found for n in range(len(s))}
    assert len(tree) == len(beginnings)
    assert tree.sequence_tokens == sum(map(len, found))
    paths = [tree.path(number) for number in range(len(tree.parents))]
    assert all((tree.positions[path] == np.arange(len(path))).all() for path in paths)
    assert (tree.parents < np.arange(len(tree.parents))).all()


@settings(deadline=None)
@given(sequences, st.randoms(use_true_random=False))
def test_the_order_of_sequences_does_not_matter(found, chance):
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert len(build_tree(found)) == len(build_tree(shuffled))


def test_a_deep_tree_needs_no_recursion():
    """Sequences that leave the longest one at every token make each of its tokens a segment."""
    depth, limit = 300, sys.getrecursionlimit()
    stairs = [np.array([0] * n + [1], dtype=np.int64) for n in reversed(range(depth))]
    sys.setrecursionlimit(len(inspect.stack(0)) + depth // 2)
    try:
        tree = build_tree(stairs)
    finally:
        sys.setrecursionlimit(limit)
    inner = tree.rows[0][
        :-1
    ]  # of the longest one; its last token is in the segment of the one before
    assert len(inner) == depth - 1
    assert np.isin(inner, tree.starts).all()
