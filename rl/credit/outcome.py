"""Estimators that see a trajectory as one action with one reward: the sum over its turns.

Every token of a trajectory gets the trajectory's advantage (REINFORCE++ with a discount excepted).
"Unbiased" means: with independent trajectories from the current policy, summing advantage times
grad log-probability over a trajectory's tokens and averaging over trajectories has the gradient of
the expected reward as its expectation. A divisor that depends on length destroys it in the loss.

A group of one has nothing to be compared with: its advantage is 0, and so is that of a group of equal
rewards, exactly. Not so in `filtered` and `reinforce_pp`, which know no groups, and in
`reinforce_pp_baseline`, which subtracts a mean over the batch besides.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rl.credit.group import Batch, CreditError, Floats
from rl.credit.ledger import Credit, Unit
from rl.credit.settle import check, per_token, per_turn, term
from rl.credit.spread import Eps, Std, divisor, mean

Spread = Literal["raw", "demeaned"]


def grpo(batch: Batch, *, std: Std = "sample", eps: Eps = 1e-6) -> Credit:
    """(reward - group mean) / (group std + eps).

    Biased. The divisor depends on the trajectory's own reward: with rewards 0 and 1, success rate p
    and a population std, the expected gradient is E[sqrt(k (G - k))] / (G p (1 - p)) times the true
    one, where k ~ Binomial(G, p). Questions of different difficulty get different factors.

    Args:
        batch: n trajectories.
        std: `sample` (default, divisor G - 1) or `population`.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.
    """
    check(batch)
    baseline, scale = _group_means(batch), np.empty(len(batch))
    for rows in batch.groups:
        scale[rows] = divisor(batch.outcomes[rows], std, eps)
    return _whole(batch, baseline, scale)


def dr_grpo(batch: Batch) -> Credit:
    """Reward - group mean.

    Biased by the known factor (G - 1) / G, the same for every question when groups are of one size:
    the mean contains the trajectory's own reward. Goes with a constant divisor in the loss.

    Raises:
        CreditError: a reward that is not finite.

    Source: Dr. GRPO (arXiv 2503.20783).
    """
    check(batch)
    return _whole(batch, _group_means(batch), np.ones(len(batch)))


def rloo(batch: Batch) -> Credit:
    """Reward - mean reward of the group's other trajectories.

    Unbiased for groups of two and more: the baseline does not depend on the trajectory itself. A
    group of one gets 0 and so contributes nothing.

    Raises:
        CreditError: a reward that is not finite.

    Source: RLOO, Back to Basics (arXiv 2402.14740).
    """
    check(batch)
    outcomes, baseline = batch.outcomes, _group_means(batch)
    for rows in batch.groups:
        if len(rows) > 1 and np.ptp(outcomes[rows]) > 0:
            baseline[rows] = (outcomes[rows].sum() - outcomes[rows]) / (len(rows) - 1)
    return _whole(batch, baseline, np.ones(len(batch)))


def lite_ppo(
    batch: Batch, *, spread: Spread = "raw", std: Std = "sample", eps: Eps = 1e-6
) -> Credit:
    """(reward - group mean) / (std over the whole batch + eps).

    Biased: the divisor depends a little on each reward in it. It is one number for all questions,
    so that, unlike in GRPO, the noise of a group of near-equal rewards is not blown up.

    Args:
        batch: n trajectories.
        spread: `raw` (default) for the std of the rewards, `demeaned` for that of rewards less their
            group's mean; the two differ by the spread between groups.
        std: `sample` (default) or `population`; each trajectory counts once.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite, or another word for an option.

    Source: Lite PPO, Tricks or Traps (arXiv 2508.08221).
    """
    check(batch)
    if spread not in ("raw", "demeaned"):
        raise CreditError(f"spread is '{spread}'", "it is 'raw' or 'demeaned'")
    baseline = _group_means(batch)
    pool = batch.outcomes - (baseline if spread == "demeaned" else 0.0)
    return _whole(batch, baseline, np.full(len(batch), divisor(pool, std, eps)))


def filtered(batch: Batch, *, threshold: float = 0.5) -> Credit:
    """1 for a trajectory whose reward is above the threshold, 0 for every other one.

    No gradient of the expected reward less a baseline, but that of the likelihood of what was kept:
    nothing is compared, and a group of equal rewards is not 0 where all of it is kept. What is not kept
    counts in the loss's divisor: the loss is an expectation over all samples of filter times negative
    log-likelihood, which under `token-mean` is the mean over kept tokens times their share of all.

    Args:
        batch: n trajectories; groups are ignored.
        threshold: a reward at it is not kept.

    Raises:
        CreditError: a reward that is not finite.

    Source: ReST (arXiv 2308.08998); with rewards 0 and 1 ReST-EM (arXiv 2312.06585).
    """
    check(batch)
    kept = (batch.outcomes > threshold).astype(np.float64)[:, None]
    return per_turn(batch, (term(batch, "kept", Unit.TRAJECTORY, kept, discount=None),))


def reinforce_pp(
    batch: Batch, *, gamma: float = 1.0, std: Std = "sample", eps: Eps = 1e-6
) -> Credit:
    """Discounted token returns, whitened over all sampled tokens of the batch; groups are ignored.

    Biased: mean and std of the batch contain the token's own return, and long trajectories have more
    say in them. Time is counted in sampled tokens; tool tokens neither discount nor reset a return.

    Args:
        batch: n trajectories; a turn's reward falls on its last token.
        gamma: discount per sampled token.
        std: over tokens, `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite, or gamma outside 0..1.

    Source: REINFORCE++ (arXiv 2501.03262).
    """
    check(batch, gamma=gamma)
    returns = tuple(_token_returns(batch, i, gamma) for i in range(len(batch)))
    pool = _sampled(batch, returns)
    zeros = tuple(np.zeros(len(row)) for row in returns)
    return per_token(batch, returns, zeros, mean(pool), divisor(pool, std, eps))


def reinforce_pp_baseline(batch: Batch, *, std: Std = "sample", eps: Eps = 1e-6) -> Credit:
    """Reward - group mean, then whitened over all sampled tokens of the batch.

    Biased: as `reinforce_pp`. With unequal lengths the whitening mean is not 0, so that a group's
    advantages do not sum to 0.

    Args:
        batch: n trajectories.
        std: over tokens, `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: a reward that is not finite.

    Source: REINFORCE++ (arXiv 2501.03262), the variant with a group baseline.
    """
    check(batch)
    baseline = _group_means(batch)
    demeaned = batch.outcomes - baseline
    pool = np.repeat(demeaned, batch.tokens.sum(axis=1))
    scale = np.full(len(batch), divisor(pool, std, eps))
    return _whole(batch, baseline, scale, mean(pool))


def _whole(batch: Batch, baseline: Floats, scale: Floats, center: float = 0.0) -> Credit:
    one = term(
        batch,
        "outcome",
        Unit.TRAJECTORY,
        batch.outcomes[:, None],
        baseline=baseline[:, None],
        center=center,
        scale=scale[:, None],
    )
    return per_turn(batch, (one,))


def _group_means(batch: Batch) -> Floats:
    out = np.empty(len(batch))
    for rows in batch.groups:
        out[rows] = mean(batch.outcomes[rows])
    return out


def _sampled(batch: Batch, tokens: tuple[Floats, ...]) -> Floats:
    chosen = [row[mask] for row, mask in zip(tokens, batch.sampled, strict=True)]
    return np.concatenate([np.zeros(0), *chosen])


def _token_returns(batch: Batch, i: int, gamma: float) -> Floats:
    sampled = batch.sampled[i]
    rewards = token_rewards(batch, i)
    returns, running = np.zeros(len(sampled)), 0.0
    for t in range(len(sampled) - 1, -1, -1):
        running = rewards[t] + (gamma * running if sampled[t] else running)
        returns[t] = running
    return returns


def token_rewards(batch: Batch, i: int) -> Floats:
    """float64[tokens of trajectory i]: each turn's reward on the turn's last sampled token.

    The reward of a turn without one falls on the last sampled token before it; when there is none
    either, no token of this policy earned it and it is left out.
    """
    rewards = np.zeros(len(batch.sampled[i]))
    for k, (_, stop) in enumerate(batch.spans[i]):
        earlier = np.flatnonzero(batch.sampled[i][:stop])
        if len(earlier):
            rewards[earlier[-1]] += batch.rewards[i, k]
    return rewards
