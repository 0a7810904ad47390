"""Estimators that give each turn an advantage of its own.

Sources of bias that `rl.credit.outcome` does not have come in with the turns. Episodes stop when the
policy says so, hence how many turns (and which trajectories at a turn number) there are depends on
the actions that are being credited. `rl.credit.stopping` is the estimator that respects this.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rl.credit.group import Batch, Bools, CreditError, Floats, Ints, suffix_returns
from rl.credit.ledger import Credit, PartAccount, Unit
from rl.credit.settle import check, per_turn, term
from rl.credit.spread import Eps, Std, divisor, mean

Pools = Literal["separate", "joint"]


def igpo(
    batch: Batch,
    *,
    pools: Pools = "separate",
    gamma: float = 1.0,
    scaled: bool = True,
    std: Std = "population",
    eps: Eps = 1e-6,
) -> Credit:
    """Rewards normalised within the group, then summed from each turn to the end.

    Normalisation comes first, accumulation second. A pool holds every turn of every trajectory of
    the group at which its reward is given, not one turn number.

    Biased when the policy chooses when to stop: with m the pool's mean, the sum from turn t on
    contains -m x (remaining turns), so that the estimator pushes towards long episodes when m < 0
    and short ones when m > 0. With equal rewards at every turn it is 0, whatever the gradient is.
    Dividing by the std adds GRPO's bias.

    Args:
        batch: information gain and outcome as parts of their own, each given where it is defined.
        pools: `separate` (default, the paper's final form) normalises each part over its own pool;
            `joint` has one pool for all parts.
        gamma: discount per turn; 0 leaves the normalised rewards, 1 (default) gives suffix sums.
        scaled: divide by the pool's std.
        std: `population` (default) or `sample`.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite, or an option that makes no sense.

    Source: IGPO (arXiv 2510.14967) and its released code.
    """
    check(batch, gamma=gamma)
    if pools not in ("separate", "joint"):
        raise CreditError(f"pools is '{pools}'", "it is 'separate' or 'joint'")
    shape = batch.turn_mask.shape
    centers = {part.name: np.zeros(shape) for part in batch.parts}
    scales = {part.name: np.ones(shape) for part in batch.parts}
    for rows in batch.groups:
        for names in _pooled(batch, pools):
            members = [part for part in batch.parts if part.name in names]
            pool = np.concatenate([part.values[rows][part.given[rows]] for part in members])
            for name in names:
                centers[name][rows] = mean(pool)
                scales[name][rows] = divisor(pool, std, eps) if scaled else 1.0
    accounts = tuple(
        PartAccount(p.name, p.values, p.given, centers[p.name], scales[p.name]) for p in batch.parts
    )
    total = np.zeros(shape)
    for account in accounts:
        total += account.normalised
    returns = suffix_returns(total, gamma)
    one = term(batch, "return", Unit.TURN, returns, discount=gamma)
    return per_turn(batch, (one,), accounts)


def turn_group(
    batch: Batch,
    *,
    gamma: float = 1.0,
    scaled: bool = False,
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """Suffix return less the mean over the group's trajectories that have this turn number.

    Biased when the policy chooses when to stop. The mean contains the trajectory itself, one of the
    n_t that reach turn t, which shrinks the expected gradient of turn t by E[1 - 1/n_t]: late turns,
    reached by few, are shrunk most, and one that only a single trajectory reached gets 0. Without
    that choice n_t is the group's size, and the factor is one constant. Here to be compared with.

    Args:
        batch: n trajectories.
        gamma: discount per turn.
        scaled: divide by the std of the same returns (adds GRPO's bias).
        std: `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite, or gamma outside 0..1.
    """
    check(batch, gamma=gamma)
    returns = suffix_returns(batch.rewards, gamma)
    baseline, scale = np.zeros_like(returns), np.ones_like(returns)
    for rows in batch.groups:
        for turn in range(returns.shape[1]):
            reached = rows[batch.turn_mask[rows, turn]]
            baseline[reached, turn] = mean(returns[reached, turn])
            if scaled:
                scale[reached, turn] = divisor(returns[reached, turn], std, eps)
    one = term(batch, "return", Unit.TURN, returns, baseline=baseline, scale=scale, discount=gamma)
    return per_turn(batch, (one,))


def turn_rloo(batch: Batch, *, gamma: float = 1.0) -> Credit:
    """Suffix return less the mean over the group's other trajectories that have this turn number.

    Unbiased with gamma = 1, whoever chooses when to stop: whether this trajectory reaches turn t was
    settled before the turn's tokens, and who else reaches it is not its doing. Where no other
    trajectory does, the baseline is 0: still unbiased, but noisy (see `stopping`). A group of one
    gets 0. With gamma < 1, turn t's share must be multiplied by gamma^t to give the gradient of the
    discounted return.

    Args:
        batch: n trajectories.
        gamma: discount per turn.

    Raises:
        CreditError: a reward that is not finite, or gamma outside 0..1.

    Source: RLOO (arXiv 2402.14740) applied turn by turn.
    """
    check(batch, gamma=gamma)
    returns = suffix_returns(batch.rewards, gamma)
    baseline, _ = others_at_turn(batch, returns)
    one = term(batch, "return", Unit.TURN, returns, baseline=baseline, discount=gamma)
    return per_turn(batch, (one,))


def gigpo(
    batch: Batch,
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    scaled: bool = True,
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """Trajectory advantage within the group plus omega x turn advantage within equal states.

    The first compares whole trajectories as GRPO does. The second compares the suffix returns of
    all turns of the group, of any trajectory and number, that began in the same anchor state; a
    state seen once adds 0.

    Biased: both means contain the turn's own return; anchor groups differ in size by what the policy
    does, and one trajectory may visit a state twice. With `scaled`, GRPO's bias as well.

    Args:
        batch: with `anchors`.
        gamma: discount per turn in the second term.
        omega: weight of the second term.
        scaled: divide each by the std of its group.
        std: `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: no anchors, a reward that is not finite, or gamma outside 0..1.

    Source: GiGPO (arXiv 2505.10978).
    """
    check(batch, gamma=gamma)
    if batch.anchors is None:
        raise CreditError("gigpo needs anchors", "give every turn the number of its state")
    whole = np.broadcast_to(batch.outcomes[:, None], batch.turn_mask.shape)
    returns = suffix_returns(batch.rewards, gamma)
    episode = np.zeros(whole.shape), np.ones(whole.shape)
    step = np.zeros(whole.shape), np.ones(whole.shape)
    for rows in batch.groups:
        pool = batch.outcomes[rows]
        episode[0][rows] = mean(pool)
        episode[1][rows] = divisor(pool, std, eps) if scaled else 1.0
        for here in _anchor_groups(batch.anchors, batch.turn_mask, rows):
            step[0][here] = mean(returns[here])
            step[1][here] = divisor(returns[here], std, eps) if scaled else 1.0
    terms = (
        term(batch, "episode", Unit.TRAJECTORY, whole, baseline=episode[0], scale=episode[1]),
        term(
            batch,
            "step",
            Unit.TURN,
            returns,
            baseline=step[0],
            scale=step[1],
            weight=omega,
            discount=gamma,
        ),
    )
    return per_turn(batch, terms)


def others_at_turn(batch: Batch, returns: Floats) -> tuple[Floats, Bools]:
    """Mean of `returns` over the others of the group that have the turn, and whether it is known.

    A group of one is its own baseline, so that its advantages are 0.

    Returns:
        float64[n, turns], 0 where no other has the turn, and bool[n, turns].
    """
    baseline = np.zeros(returns.shape)
    known = np.zeros(returns.shape, dtype=np.bool_)
    for rows in batch.groups:
        if len(rows) == 1:
            baseline[rows], known[rows] = returns[rows], True
        for turn in range(returns.shape[1]):
            reached = rows[batch.turn_mask[rows, turn]]
            if len(reached) > 1:
                baseline[reached, turn] = leave_one_out(returns[reached, turn])
                known[reached, turn] = True
    return baseline, known


def leave_one_out(values: Floats) -> Floats:
    """float64[n]: mean of the other n - 1 values, for n of at least 2; exact for equal ones."""
    if np.ptp(values) == 0:
        return values.copy()
    others: Floats = (values.sum() - values) / (len(values) - 1)
    return others


def _pooled(batch: Batch, pools: Pools) -> list[list[str]]:
    names = [part.name for part in batch.parts]
    return [names] if pools == "joint" else [[name] for name in names]


def _anchor_groups(anchors: Ints, mask: Bools, rows: Ints) -> list[tuple[Ints, Ints]]:
    row, turn = np.nonzero(mask[rows])
    row = rows[row]
    states = anchors[row, turn]
    return [(row[states == s], turn[states == s]) for s in np.unique(states)]
