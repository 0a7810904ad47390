"""From an assessed batch to trees: every loss token stands in the context that it was sampled in."""

import itertools
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batches import lay_out, minibatches, parts, update_batch
from tests.rl.groups import random_group


def assessed(seed, groups=2, size=4):
    """Groups whose advantages and log-probabilities tell apart every token of the batch."""
    made = [random_group(seed + n, size=size) for n in range(groups)]
    every = [t for group in made for t in group]
    advantages = [1000.0 * number + np.arange(len(t.token_ids)) for number, t in enumerate(every)]
    for number, t in enumerate(every):
        t.logprobs[t.sampled] = -advantages[number][t.sampled] - 1
    credit = SimpleNamespace(advantages=advantages)
    return SimpleNamespace(groups=tuple(map(tuple, made)), credit=credit), every


def path(tree, row):
    """The tokens that a row of a tree sees, and its own behind them."""
    segment = int(np.searchsorted(tree.starts, row, side="right")) - 1
    whole = tree.path(segment)
    return tree.ids[whole[: len(whole) - (int(tree.starts[segment + 1]) - row) + 1]].tolist()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1, 40, 10_000]))
def test_every_loss_token_stands_behind_what_was_seen_when_it_was_sampled(seed, most):
    """And no other token is one, whatever advantage it has.

    unsloth#5673: the mask of tool text was not applied, and the reward collapsed.
    """
    batch, every = assessed(seed)
    found = set()
    for tree in lay_out(batch, most):
        assert (np.diff(tree.rows) > 0).all()
        keys = [(number, int(token)) for number, reply in tree.where for token in reply]
        for at, (number, token) in enumerate(keys):
            trajectory = every[number]
            [turn] = [t for t in trajectory.turns if t.reply.start <= token < t.reply.stop]
            seen = trajectory.prompt_of(turn).tolist()
            written = trajectory.token_ids[turn.reply.start : token + 1].tolist()
            assert path(tree.tree, int(tree.rows[tree.place[at]])) == seen + written
            assert tree.sequence[at] == number
            assert tree.advantages[at] == 1000 * number + token
            assert tree.behaviour[at] == -1000 * number - token - 1
        assert not found & set(keys)
        found |= set(keys)
    sampled = {(n, int(i)) for n, t in enumerate(every) for i in np.flatnonzero(t.sampled)}
    assert found == sampled


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 120))
def test_a_tree_is_not_larger_than_asked_unless_one_trajectory_is(seed, most):
    numbered = list(enumerate(random_group(seed, size=6)))
    made = list(parts(numbered, most))
    assert [one for part in made for one in part] == numbered
    for part in made:
        prompt = len(part[0][1].prompt_of(part[0][1].turns[0]))
        size = prompt + sum(len(t.token_ids) - prompt for _, t in part)
        assert size <= most or len(part) == 1
    for part, (following, *_) in itertools.pairwise(made):  # nor smaller than it may be
        _, trajectory = following
        prompt = len(trajectory.prompt_of(trajectory.turns[0]))
        held = prompt + sum(len(t.token_ids) - prompt for _, t in part)
        assert held + len(trajectory.token_ids) - prompt > most


def test_a_step_counts_its_tokens_and_its_trajectories_once():
    """A trajectory whose calls lie in two trees is one sequence."""
    batch, every = assessed(7)
    trees = lay_out(batch, 1)
    assert len(trees) > 2
    whole = update_batch([*trees, trees[0]])
    assert whole.sequences == sum(bool(t.sampled.any()) for t in every)
    assert whole.tokens == sum(map(len, trees)) + len(trees[0])
    assert whole.divisor("token-mean") == whole.tokens
    for how in ("sequence-mean", "sequence-sum", "constant"):
        assert whole.divisor(how) == whole.sequences
    assert not any(tree.silent for tree in trees[1:])
    trees[1].advantages[:] = 0.0
    assert trees[1].silent is True


def test_minibatches_hold_every_tree_once_in_the_order_asked_for():
    batch, _ = assessed(3, groups=9, size=2)
    trees = lay_out(batch, 10_000)
    order = list(range(len(trees)))[::-1]
    steps = minibatches(trees, 3, order)
    assert len(steps) == 3
    assert [id(t) for s in steps for t in s.trees] == [id(trees[n]) for n in order]
    most = max(map(len, trees))
    assert all(abs(step.tokens - sum(map(len, trees)) / 3) <= most for step in steps)
    assert [id(t) for s in minibatches(trees, 2) for t in s.trees] == list(map(id, trees))
    assert len(minibatches(trees[:2], 5)) == 2
    assert minibatches([], 2) == []
