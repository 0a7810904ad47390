"""How far each turn has moved from the weights that a run began with, for the KL in the reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.trajectory import Trajectory
from rl.learner import Learner
from rl.sampled import at_sampled
from rl.tree import TokenTree

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def turn_kl(
    learner: Learner, groups: Sequence[Sequence[Trajectory]], most: int
) -> dict[str, Floats]:
    """k1 of each turn: sum over its sampled tokens of log p(policy) - log p(anchor).

    Both come from the learner, so that a policy that has not moved gives 0. Every process must score
    the same groups.

    Args:
        learner: with an anchor.
        groups: of trajectories; those without tokens are left out.
        most: tokens of one pass, as for `rl.batches.lay_out`.

    Returns:
        Trajectory id to float64[turns], nats.
    """

    def gap(tree: TokenTree, rows: Ids) -> Floats:
        now, then = (learner.logprobs(tree, rows, anchor=anchor) for anchor in (False, True))
        return (now - then).astype(np.float64)

    tokens = at_sampled(groups, most, gap)
    return {
        trajectory.id: np.array([own[t.reply.start : t.reply.stop].sum() for t in trajectory.turns])
        for trajectory, own in zip((t for group in groups for t in group), tokens, strict=True)
        if trajectory.has_tokens
    }
