"""How far each turn has moved from the weights that a run began with, for the KL in the reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.trajectory import Trajectory
from rl.batches import Numbered, calls_tree, parts
from rl.learner import Learner

Floats = npt.NDArray[np.float64]


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
    found: dict[str, Floats] = {}
    for group in groups:
        numbered = [(number, t) for number, t in enumerate(group) if t.has_tokens]
        for part in parts(numbered, most):
            found |= _of_part(learner, part)
    return found


def _of_part(learner: Learner, part: Sequence[Numbered]) -> dict[str, Floats]:
    tree, replies, rows = calls_tree(part)
    out = {number: np.zeros(len(trajectory.turns)) for number, trajectory in part}
    if len(rows):
        unique, place = np.unique(rows, return_inverse=True)
        now, then = (learner.logprobs(tree, unique, anchor=anchor) for anchor in (False, True))
        gap = (now - then).astype(np.float64)[place.reshape(-1)]
        ends = np.cumsum([len(reply.tokens) for reply in replies])
        for reply, tokens in zip(replies, np.split(gap, ends[:-1]), strict=True):
            out[reply.number][reply.turn] = tokens.sum()
    return {trajectory.id: out[number] for number, trajectory in part}
