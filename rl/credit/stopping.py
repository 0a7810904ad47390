"""The estimator for episodes whose length the policy chooses.

Three things bias turn-level credit under policy-chosen stopping: rewards centred before they are
summed (a constant per remaining turn pays for stopping early or late), baselines that contain the
trajectory itself (their weight 1/n_t changes with the turn), and divisors that depend on its own
rewards or length. `stopping` does none of the three.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rl.credit.group import Batch, CreditError, Floats, suffix_returns
from rl.credit.ledger import Credit, Unit
from rl.credit.settle import check, per_turn, term
from rl.credit.spread import Eps, Std, divisor
from rl.credit.turns import leave_one_out, others_at_turn

Scale = Literal["none", "others"]


def stopping(
    batch: Batch,
    *,
    gamma: float = 1.0,
    scale: Scale = "none",
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """Suffix return less what the group's other trajectories got from the same turn on.

    The baseline at turn t is the mean suffix return, at t, of the other trajectories that reached
    t. Where none did, it is the mean over all others of the suffix return at their own last turn:
    the nearest thing known to what a last turn is worth. Both are functions of other trajectories
    alone, and whether this one reaches t was settled before t, so that the baseline's expected
    contribution is 0 at every turn: unbiased with gamma = 1, however episodes end. With gamma < 1
    turn t's share must be multiplied by gamma^t for the gradient of the discounted return.

    A group of one gets 0 (nothing to compare with). For the loss to stay unbiased, sum over tokens
    and divide by a constant or by the number of trajectories, not by lengths.

    Args:
        batch: n trajectories.
        gamma: discount per turn.
        scale: `none` (default), or `others`: divide a group's advantages by the std of the other
            groups' trajectory rewards. The expected gradient of each question is then the true one
            times a positive number that its own actions do not touch. With no spread elsewhere (or
            one group) the divisor is 1.
        std: of `others`, `sample` (default) or `population`.
        eps: added to that std.

    Raises:
        CreditError: a reward that is not finite, or an option that makes no sense.

    Source: the action-independent baseline argument of Williams (1992), with the leave-one-out
        baseline of RLOO (arXiv 2402.14740), applied to each turn's return.
    """
    check(batch, gamma=gamma)
    if scale not in ("none", "others"):
        raise CreditError(f"scale is '{scale}'", "it is 'none' or 'others'")
    returns = suffix_returns(batch.rewards, gamma)
    baseline, known = others_at_turn(batch, returns)
    baseline = np.where(known, baseline, _last_turns(batch, returns)[:, None])
    spread = np.ones(len(batch))
    if scale == "others":
        for rows in batch.groups:
            spread[rows] = divisor(np.delete(batch.outcomes, rows), std, eps)
    one = term(
        batch,
        "return",
        Unit.TURN,
        returns,
        baseline=baseline,
        scale=spread[:, None],
        discount=gamma,
    )
    return per_turn(batch, (one,))


def _last_turns(batch: Batch, returns: Floats) -> Floats:
    """float64[n]: mean over the others of the group of the return at their last turn."""
    last = np.zeros(len(batch))
    has = batch.turns > 0
    last[has] = returns[has, batch.turns[has] - 1]
    out = np.zeros(len(batch))
    for rows in batch.groups:
        if len(rows) > 1:
            out[rows] = leave_one_out(last[rows])
    return out
