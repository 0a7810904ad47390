"""Generalised advantage estimation over tokens, over turns, and over both.

`Batch.values` holds the predicted return before each token, given what precedes it. Tokens that the
policy did not sample (tool output) are no steps: they neither discount nor reset anything, and their
values are never read. With gamma = lambda = 1 and no whitening every estimator here is unbiased for
any fixed values, since each subtracts from a return a number settled before the token; values that
are off then cost variance only. lambda < 1 trades variance for the values' error; whitening, the
default as in the field, divides by a std that depends on the batch, which biases the scale.
What the values are to learn, A + V before whitening, is in `Credit.targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rl.credit.group import Batch, CreditError, Floats, Ints
from rl.credit.ledger import Credit, Unit
from rl.credit.outcome import token_rewards
from rl.credit.settle import check, per_token, per_turn, term
from rl.credit.spread import Eps, Std, divisor, mean


def token_gae(
    batch: Batch,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """GAE over sampled tokens: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}.

    t + 1 is the next sampled token, across tool output; after the last one V and A are 0. Unbiased
    with gamma = lam = 1 and `whiten=False` (see the module).

    Args:
        batch: with `values`; a turn's reward falls on its last sampled token.
        gamma: discount per sampled token.
        lam: lambda, weight of longer returns.
        whiten: subtract the mean and divide by the std over all sampled tokens of the batch.
        std: `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: no values, a number that is not finite, or a discount outside 0..1.

    Source: GAE (arXiv 1506.02438), equation 16.
    """
    check(batch, gamma=gamma, lam=lam)
    return _over_tokens(
        batch, lambda i, v: _token_advantages(batch, i, v, gamma, lam), whiten, std, eps
    )


def turn_gae(
    batch: Batch,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """GAE with a turn as the step; V is the value before the turn's first sampled token.

    All tokens of a turn share its advantage. Unbiased with gamma = lam = 1 and `whiten=False`.

    Args:
        batch: with `values`.
        gamma: discount per turn.
        lam: lambda.
        whiten: over turns with sampled tokens, each counted once.
        std: `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: no values, a number that is not finite, or a discount outside 0..1.

    Source: GAE (arXiv 1506.02438) over turns.
    """
    check(batch, gamma=gamma, lam=lam)
    predicted = _values(batch)
    before, advantage = np.zeros(batch.turn_mask.shape), np.zeros(batch.turn_mask.shape)
    targets = tuple(np.full(len(values), np.nan) for values in predicted)
    for i in range(len(batch)):
        live, rewards = _live_turns(batch, i)
        edges = np.array([_steps(batch, i, k)[0] for k in live], dtype=np.int64)
        values = predicted[i][edges]
        before[i, live] = values
        advantage[i, live] = _backward(rewards, values, gamma, lam)
        targets[i][edges] = advantage[i, live] + values
    live_mask = batch.tokens > 0
    pool = advantage[live_mask]
    center = mean(pool) if whiten else 0.0
    scale = divisor(pool, std, eps) if whiten else 1.0
    one = term(
        batch,
        "turn",
        Unit.TURN,
        advantage + before,
        baseline=before,
        center=np.where(live_mask, center, 0.0),
        scale=np.where(live_mask, scale, 1.0),
        discount=None,
    )
    return replace(per_turn(batch, (one,)), targets=targets)


def bilevel_gae(
    batch: Batch,
    *,
    turn_gamma: float = 0.95,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    std: Std = "sample",
    eps: Eps = 1e-6,
) -> Credit:
    """GAE over turn ends, then over the tokens inside each turn.

    First pass, V at each turn's last sampled token: A_k = delta_k + turn_gamma lam A_{k+1} with
    delta_k = R_k + turn_gamma V_{k+1} - V_k. Second pass inside turn k: the last token's reward is
    A_k + V_k and nothing follows it. Turn ends come from the spans, so that a turn with reward 0
    counts like any other. Unbiased with turn_gamma = gamma = lam = 1 and `whiten=False`.

    Args:
        batch: with `values`.
        turn_gamma: discount per turn.
        gamma: discount per sampled token inside a turn.
        lam: lambda of both passes.
        whiten: subtract the mean and divide by the std over all sampled tokens of the batch.
        std: `sample` (default) or `population`.
        eps: added to the std.

    Raises:
        CreditError: no values, a number that is not finite, or a discount outside 0..1.

    Source: RAGEN (arXiv 2504.20073), bi-level GAE.
    """

    def advantages(i: int, values: Floats) -> Floats:
        live, rewards = _live_turns(batch, i)
        positions = [_steps(batch, i, k) for k in live]
        ends = values[np.array([tokens[-1] for tokens in positions], dtype=np.int64)]
        targets = _backward(rewards, ends, turn_gamma, lam) + ends
        out = np.zeros(len(values))
        for tokens, target in zip(positions, targets, strict=True):
            inner = np.zeros(len(tokens))
            inner[-1] = target
            out[tokens] = _backward(inner, values[tokens], gamma, lam)
        return out

    check(batch, turn_gamma=turn_gamma, gamma=gamma, lam=lam)
    return _over_tokens(batch, advantages, whiten, std, eps)


def _over_tokens(
    batch: Batch,
    advantages: Callable[[int, Floats], Floats],
    whiten: bool,
    std: Std,
    eps: float,
) -> Credit:
    values = _values(batch)
    raw = [advantages(i, values[i]) for i in range(len(batch))]
    chosen = [row[mask] for row, mask in zip(raw, batch.sampled, strict=True)]
    pool = np.concatenate([np.zeros(0), *chosen])
    center = mean(pool) if whiten else 0.0
    scale = divisor(pool, std, eps) if whiten else 1.0
    returns = tuple(a + v for a, v in zip(raw, values, strict=True))
    targets = tuple(np.where(m, r, np.nan) for m, r in zip(batch.sampled, returns, strict=True))
    return replace(per_token(batch, returns, values, center, scale), targets=targets)


def _values(batch: Batch) -> tuple[Floats, ...]:
    """Values of sampled tokens, 0 elsewhere."""
    if batch.values is None:
        raise CreditError("this estimator needs values", "give a predicted return per token")
    return tuple(np.where(m, v, 0.0) for m, v in zip(batch.sampled, batch.values, strict=True))


def _token_advantages(batch: Batch, i: int, values: Floats, gamma: float, lam: float) -> Floats:
    steps = np.flatnonzero(batch.sampled[i])
    out = np.zeros(len(values))
    out[steps] = _backward(token_rewards(batch, i)[steps], values[steps], gamma, lam)
    return out


def _backward(rewards: Floats, values: Floats, gamma: float, lam: float) -> Floats:
    """GAE over consecutive steps; after the last one, value and advantage are 0."""
    out, later, following = np.zeros(len(rewards)), 0.0, 0.0
    for k in range(len(rewards) - 1, -1, -1):
        later = rewards[k] + gamma * following - values[k] + gamma * lam * later
        out[k], following = later, values[k]
    return out


def _live_turns(batch: Batch, i: int) -> tuple[Ints, Floats]:
    """Turns of trajectory i with sampled tokens; the reward of one without falls on the one before."""
    live = np.flatnonzero(batch.tokens[i] > 0)
    rewards = np.zeros(len(live))
    for k in range(len(batch.spans[i])):
        earlier = np.flatnonzero(live <= k)
        if len(earlier):
            rewards[earlier[-1]] += batch.rewards[i, k]
    return live, rewards


def _steps(batch: Batch, i: int, turn: int) -> Ints:
    """int64: positions of the turn's sampled tokens."""
    start, stop = batch.spans[i][turn]
    positions: Ints = start + np.flatnonzero(batch.sampled[i][start:stop])
    return positions
