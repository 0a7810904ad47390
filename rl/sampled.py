"""Numbers at the tokens that a policy sampled, computed over token trees that processes share out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.trajectory import Trajectory
from rl import ranks
from rl.batches import calls_tree, parts
from rl.tree import TokenTree

Floats = npt.NDArray[np.float64]
#: Tree and int64[m] rows, ascending, to a number for each.
Compute = Callable[[TokenTree, npt.NDArray[np.int64]], npt.NDArray[Any]]


def at_sampled(groups: Sequence[Sequence[Trajectory]], most: int, compute: Compute) -> list[Floats]:
    """For each trajectory, groups end to end, float64[its tokens]: what is computed at its sampled
    tokens, and 0 elsewhere. Every process must ask for the same.

    Args:
        groups: of trajectories; all is 0 of those without tokens.
        most: tokens of one pass, as for `rl.batches.lay_out`.
        compute: of a tree, at rows that hold sampled tokens.
    """
    out: list[Floats] = []
    trees = []
    for group in groups:
        numbered = [(n, t) for n, t in enumerate(group, start=len(out)) if t.has_tokens]
        trees += [calls_tree(part) for part in parts(numbered, most)]
        out += [np.zeros(len(trajectory.token_ids)) for trajectory in group]
    trees = [one for one in trees if len(one[2])]
    found = ranks.dealt(trees, lambda one: compute(one[0], np.unique(one[2])))
    for (_, replies, rows), values in zip(trees, found, strict=True):
        each = values[np.searchsorted(np.unique(rows), rows)]
        ends = np.cumsum([len(reply.tokens) for reply in replies])
        for reply, own in zip(replies, np.split(each, ends[:-1]), strict=True):
            out[reply.number][reply.tokens] = own
    return out
