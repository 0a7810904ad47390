"""From an assessed batch to trees: every loss token stands in the context that it was sampled in."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batches import calls_tree, lay_out, minibatches, parts, update_batch
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


@pytest.mark.parametrize("seed", range(20))
def test_parts_hold_as_much_as_fits_and_everything_once(seed):
    group, most = list(enumerate(random_group(seed, size=6, turns=(2, 4)))), 60
    found = list(parts(group, most))
    assert [item for part in found for item in part] == group
    assert len(found) > 1
    sizes = [len(calls_tree(part)[0]) for part in found]
    assert all(size <= most or len(part) == 1 for size, part in zip(sizes, found, strict=True))
    for part, after in itertools.pairwise(found):  # the next one would not have fitted
        assert len(calls_tree([*part, after[0]])[0]) > most


def test_what_rollouts_share_counts_once():
    """Six equal rollouts need no more room than one."""
    one = random_group(3)[0]
    group = [(number, replace(one, id=str(number))) for number in range(6)]
    assert list(parts(group, len(calls_tree(group[:1])[0]))) == [group]


def test_a_rollout_that_is_longer_than_a_part_stands_alone():
    group = list(enumerate(random_group(1, size=6)))
    found = list(parts(group, 1))
    assert [len(part) for part in found] == [1] * 6
    assert np.concatenate([[number for number, _ in part] for part in found]).tolist() == [
        *range(6)
    ]


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
