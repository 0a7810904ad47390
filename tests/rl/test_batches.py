"""How groups are laid out as trees."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from rl.batches import calls_tree, parts
from tests.rl.groups import random_group


def numbered(seed, **shape):
    return list(enumerate(random_group(seed, size=6, **shape)))


@pytest.mark.parametrize("seed", range(20))
def test_parts_hold_as_much_as_fits_and_everything_once(seed):
    group, most = numbered(seed, turns=(2, 4)), 60
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
    group = numbered(1)
    found = list(parts(group, 1))
    assert [len(part) for part in found] == [1] * 6
    assert np.concatenate([[number for number, _ in part] for part in found]).tolist() == [
        *range(6)
    ]
