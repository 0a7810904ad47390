"""Policy-gradient losses over tokens, KL estimators and aggregations. Pure: nothing is logged.

Tokens of all sequences lie end to end in one dimension, as in a pack, and `sequence` says which
belong together: a trajectory that became several rows is still one sequence. A padded [batch, time]
tensor is such a layout once flattened. Numbers at tokens outside `mask` are never used: they may be
NaN, as behaviour log-probabilities of prompts are.

A loss is a value to minimise. Its gradient flows through `logprobs` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch

from kg.errors import UsageError
from rl.reduction import Aggregation, KlEstimator, Level

Diagnostics = dict[str, torch.Tensor]

LOG_RATIO_CAP = 20.0


class LossError(UsageError):
    """Tensors that do not fit together, or an option that is unknown or out of range."""


class LossOutput(NamedTuple):
    """A loss and what can be said about it.

    Attributes:
        value: scalar with gradient.
        diagnostics: detached scalars by name; fractions and means are over loss tokens.
        counts: of diagnostics that are means over something else, over how many.
    """

    value: torch.Tensor
    diagnostics: Diagnostics
    counts: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Reduction:
    """How per-token losses become one number; see `aggregate`.

    Attributes:
        how: `token-mean` (default), `sequence-mean`, `sequence-sum` or `constant`.
        constant: tokens per sequence that `constant` divides by, usually the longest allowed.
        divisor: what the sum is divided by, where the tokens at hand are only part of a batch:
            tokens of the whole batch for `token-mean`, its sequences for the others. None counts
            what is there.

    Raises:
        LossError: an unknown aggregation, or a number that is not positive.
    """

    how: Aggregation = "token-mean"
    constant: float = 1.0
    divisor: float | None = None

    def __post_init__(self) -> None:
        known = get_args(Aggregation)
        if self.how not in known:
            raise LossError(f"no aggregation '{self.how}'", f"there are: {', '.join(known)}")
        if not self.constant > 0:
            raise LossError(f"the constant is {self.constant}", "it must be positive")
        if self.divisor is not None and not self.divisor > 0:
            raise LossError(f"the divisor is {self.divisor}", "it must be positive")


TOKEN_MEAN = Reduction()


@dataclass(frozen=True)
class Tokens:
    """What a policy loss is computed over; every tensor has the shape [tokens].

    Attributes:
        logprobs: float32 or float64: log-probability (nats) under the policy in training; carries
            the gradient.
        old: the same under the policy that the ratio is taken to, fixed.
        advantages: per token.
        mask: bool; true on tokens that carry loss.
        sequence: int64; equal numbers mark tokens of one sequence. Any numbers.
        weights: factor on each token's loss, as from `importance_weights`; None for 1.

    Raises:
        LossError: shapes that differ, a mask that is not bool, log-probabilities of 16 bits.
    """

    logprobs: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    sequence: torch.Tensor
    weights: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.logprobs.shape
        if len(shape) != 1:
            raise LossError(f"logprobs has the shape {tuple(shape)}; expected [tokens]")
        named = {"old": self.old, "advantages": self.advantages, "mask": self.mask}
        named["sequence"] = self.sequence
        if self.weights is not None:
            named["weights"] = self.weights
        for name, tensor in named.items():
            if tensor.shape != shape:
                raise LossError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
        if self.mask.dtype != torch.bool:
            raise LossError(f"mask is {self.mask.dtype}; expected torch.bool")
        for name, tensor in {"logprobs": self.logprobs, "old": self.old}.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                hint = "ratios need 32 bits: take the log-softmax of logits.float()"
                raise LossError(f"{name} is {tensor.dtype}", hint)


def ppo_clip(
    tokens: Tokens,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    reduction: Reduction = TOKEN_MEAN,
) -> LossOutput:
    """PPO with a ratio per token: max(-rho A, -clip(rho, 1 - low, 1 + high) A).

    With old = current it is REINFORCE: the gradient is that of -A log pi, unbiased as far as the
    advantages are and if the reduction divides by no length. Off that point, clipping drops tokens
    and so trades bias for a bounded step.

    Args:
        tokens: of shape [tokens].
        low: clip below 1.
        high: clip above 1; larger than `low` is DAPO's clip-higher (0.28).
        dual: c > 1: for A < 0 the loss is at most -c A (dual clip; 3 is usual). None: off.
        reduction: of tokens to a scalar.

    Returns:
        The loss, and `ratio_mean`, `ratio_max`, `old_kl` (k3 of old to current, nats), `clip_low`,
        `clip_high`, `clip_dual` (fractions of tokens without gradient), `tokens`, `sequences`.

    Raises:
        LossError: an option out of range.

    Source: PPO (arXiv 1707.06347), equation 7; dual clip (arXiv 1912.09729); DAPO (arXiv 2503.14476).
    """
    log_ratio = masked_log_ratio(tokens)
    losses, flags = clipped_surrogate(log_ratio.exp(), _advantages(tokens), low, high, dual)
    return _finish(tokens, losses, log_ratio, flags, reduction)


def gspo(
    tokens: Tokens,
    *,
    low: float = 3e-4,
    high: float = 4e-4,
    cap: float = 10.0,
    reduction: Reduction | None = None,
) -> LossOutput:
    """GSPO-token: the clip applied to one ratio per sequence, exp(mean log ratio over its tokens).

    Each token's ratio has the sequence's value and its own token's gradient, so that advantages may
    differ within a sequence. With equal advantages it is GSPO. Biased off-policy by design: the
    length-normalised ratio is no importance weight.

    Args:
        tokens: of shape [tokens].
        low, high: clip around 1.
        cap: largest log ratio; beyond it the gradient stops.
        reduction: mean of sequence means when None, as in the paper.

    Returns:
        The loss and the diagnostics of `ppo_clip`, on sequence ratios.

    Raises:
        LossError: an option out of range.

    Source: GSPO (arXiv 2507.18071), section 4.3.
    """
    log_ratio = masked_log_ratio(tokens)
    index, count = _sequences(tokens.sequence)
    mean = _sequence_mean(log_ratio.detach(), tokens.mask, index, count)[index]
    straight = mean + log_ratio - log_ratio.detach()
    ratio = torch.where(tokens.mask, straight, torch.zeros_like(straight)).clamp(max=cap).exp()
    losses, flags = clipped_surrogate(ratio, _advantages(tokens), low, high, None)
    chosen = Reduction("sequence-mean") if reduction is None else reduction
    return _finish(tokens, losses, ratio.log(), flags, chosen)


def clipped_surrogate(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    dual: float | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Per-token clipped loss for any ratio, and bool masks of where each clip holds the gradient.

    Args:
        ratio: [tokens], with gradient; may be reshaped by the caller first.
        advantages: [tokens].
        low, high, dual: as in `ppo_clip`.

    Raises:
        LossError: low outside 0..1, a negative high, or a dual of at most 1.
    """
    if not 0 <= low <= 1 or high < 0:
        raise LossError(f"clip bounds {low} and {high}", "0 <= low <= 1 and high >= 0")
    if dual is not None and dual <= 1:
        raise LossError(f"dual clip {dual}", "it must be greater than 1")
    losses = torch.maximum(-ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages)
    flags = {
        "clip_low": (ratio < 1 - low) & (advantages < 0),
        "clip_high": (ratio > 1 + high) & (advantages > 0),
        "clip_dual": torch.zeros_like(advantages, dtype=torch.bool),
    }
    if dual is not None:
        bound = -dual * advantages
        flags["clip_dual"] = (advantages < 0) & (losses > bound)
        losses = torch.where(advantages < 0, torch.minimum(losses, bound), losses)
    return losses, {name: flag.detach() for name, flag in flags.items()}


def importance_weights(
    old: torch.Tensor,
    behaviour: torch.Tensor,
    mask: torch.Tensor,
    sequence: torch.Tensor,
    *,
    level: Level = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    low: float | None = None,
    high: float | None = 2.0,
) -> torch.Tensor:
    """Fixed factors that correct for an engine that samples from a slightly other distribution.

    exp(old - behaviour) per token, or the product of these over the sequence. Without bounds the
    sequence's factor is unbiased and the token's is not; bounds trade bias for variance.

    Args:
        old: log-probability by the trainer, [tokens].
        behaviour: log-probability by the engine, [tokens]; NaN where not known, which counts as
            equal.
        mask: bool[tokens], loss tokens.
        sequence: int64[tokens].
        level: `token` or `sequence`.
        mode: `truncate` holds factors within the bounds, `mask` puts 0 for those outside.
        low, high: bounds; None for no bound.

    Returns:
        [tokens], without gradient; 1 outside the mask at token level.

    Raises:
        LossError: another word for `level` or `mode`.

    Source: truncated importance sampling (Ionides, 2008); the modes are those of TRL.
    """
    if level not in ("token", "sequence") or mode not in ("truncate", "mask"):
        raise LossError(f"level '{level}', mode '{mode}'", "token|sequence and truncate|mask")
    with torch.no_grad():
        known = mask & ~torch.isnan(behaviour)
        gap = torch.where(known, old - behaviour, torch.zeros_like(old))
        if level == "sequence":
            index, count = _sequences(sequence)
            gap = gap.new_zeros(count).index_add(0, index, gap)[index]
        factors = gap.exp()
        floor = 0.0 if low is None else low
        ceiling = float("inf") if high is None else high
        if mode == "truncate":
            return factors.clamp(floor, ceiling)
        outside = (factors < floor) | (factors > ceiling)
        return factors.masked_fill(outside, 0.0)


def kl(logprobs: torch.Tensor, anchor: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """Per-token estimate of KL(policy || anchor) in nats, at tokens sampled from the policy.

    With u = anchor - logprobs: k1 = -u, k2 = u^2 / 2, k3 = e^u - u - 1. As values k1 and k3 are
    unbiased and k2 is not. As losses, on-policy with samples held fixed, k1 has no gradient in
    expectation, k2 has exactly that of KL(policy || anchor), and k3 that of KL(anchor || policy).

    Args:
        logprobs: [tokens], with gradient.
        anchor: [tokens], fixed.
        estimator: `k1`, `k2` or `k3`.

    Raises:
        LossError: another estimator.

    Source: J. Schulman, Approximating KL Divergence (2020).
    """
    u = anchor.detach() - logprobs
    if estimator == "k1":
        return -u
    if estimator == "k2":
        return u.square() / 2
    if estimator == "k3":
        return torch.expm1(u) - u
    raise LossError(f"no KL estimator '{estimator}'", "there are: k1, k2, k3")


def kl_straight_through(
    logprobs: torch.Tensor,
    anchor: torch.Tensor,
    value: KlEstimator = "k3",
    gradient: KlEstimator = "k2",
) -> torch.Tensor:
    """Per-token KL with the value of one estimator and the gradient of another.

    The default reports an unbiased value and descends the right divergence.
    """
    through = kl(logprobs, anchor, gradient)
    return kl(logprobs, anchor, value).detach() + through - through.detach()


def kl_loss(
    tokens: Tokens,
    anchor: torch.Tensor,
    *,
    value: KlEstimator = "k3",
    gradient: KlEstimator = "k2",
    reduction: Reduction = TOKEN_MEAN,
) -> LossOutput:
    """KL of the policy to an anchor over the loss tokens; see `kl` and `kl_straight_through`.

    Each token counts by its fixed ratio of the policy to whoever drew it, exp(logprobs - old) times
    `weights`: the tokens are `old`'s, or an engine's, and the KL is an expectation under the policy.
    So value and gradient are unbiased, off-policy too, as far as `weights` are not cut and the
    contexts are those that the policy would meet.

    Args:
        tokens: `advantages` are not used.
        anchor: the anchor's log-probabilities, [tokens].
        value, gradient: estimators; the gradient is k2's or k3's.
        reduction: of tokens to a scalar.

    Returns:
        The loss, and `kl` (its token mean), `kl_max` (the largest of a token, by itself).

    Raises:
        LossError: k1 as gradient, whose expectation is 0; or no such estimator.

    Source: the factor is that of DeepSeek-V3.2 (arXiv 2512.02556), section 3.1, held fixed: with k2's
    gradient the two are equal in expectation.
    """
    if gradient == "k1":
        raise LossError("k1's gradient is 0 in expectation", "take k2, or k3 for the forward KL")
    inside = tokens.mask
    zeros = torch.zeros_like(tokens.logprobs)
    logprobs = torch.where(inside, tokens.logprobs, zeros)
    fixed = torch.where(inside, anchor, zeros)
    plain = kl_straight_through(logprobs, fixed, value, gradient)
    losses = plain * masked_log_ratio(tokens).detach().exp()
    if tokens.weights is not None:
        losses = losses * torch.where(inside, tokens.weights.detach(), torch.ones_like(losses))
    diagnostics = {
        "kl": _token_mean(losses.detach(), inside),
        "kl_max": _token_max(plain.detach(), inside),
    }
    return LossOutput(aggregate(losses, inside, tokens.sequence, reduction), diagnostics)


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distribution over the last axis; a logit of -inf has no mass.

    Args:
        logits: [..., vocabulary].

    Returns:
        [...], with gradient.
    """
    logp = torch.log_softmax(logits, dim=-1)
    possible = torch.isfinite(logp)
    safe = torch.where(possible, logp, torch.zeros_like(logp))
    return -(logp.exp() * safe).sum(dim=-1)


def aggregate(
    losses: torch.Tensor,
    mask: torch.Tensor,
    sequence: torch.Tensor,
    reduction: Reduction = TOKEN_MEAN,
) -> torch.Tensor:
    """Per-token losses to a scalar.

    `token-mean`: sum / tokens. `sequence-mean`: mean over sequences of the mean over tokens (GRPO's
    1/|o|; makes any estimator biased, since short replies weigh more per token). `sequence-sum`:
    mean over sequences of the sum over tokens (keeps unbiased advantages unbiased). `constant`:
    the latter divided by a constant (Dr.GRPO). `token-mean` divides by a number that depends on the
    lengths of the batch, a bias that fades as the batch grows.

    Sequences without a loss token count for nothing; without any loss token the result is 0. With
    `divisor`, parts of a batch add up to the whole.

    Args:
        losses: [tokens].
        mask: bool[tokens].
        sequence: int64[tokens].
        reduction: which, and what to divide by.
    """
    zeros = torch.zeros_like(losses)
    kept = torch.where(mask, losses, zeros)
    if reduction.how == "token-mean":
        return kept.sum() / _divisor(reduction, mask.sum())
    index, count = _sequences(sequence)
    lengths = _lengths(mask, index, count)
    divisor = _divisor(reduction, (lengths > 0).sum())
    if reduction.how == "sequence-mean":
        return (kept / lengths.clamp(min=1)[index]).sum() / divisor
    if reduction.how == "sequence-sum":
        return kept.sum() / divisor
    return kept.sum() / (divisor * reduction.constant)


def masked_log_ratio(tokens: Tokens) -> torch.Tensor:
    """[tokens]: logprobs - old at loss tokens and 0 elsewhere, whatever stands there.

    Held at 20 (without gradient beyond it), so that no ratio overflows.
    """
    zeros = torch.zeros_like(tokens.logprobs)
    current = torch.where(tokens.mask, tokens.logprobs, zeros)
    gap = current - torch.where(tokens.mask, tokens.old.detach(), zeros)
    return gap.clamp(max=LOG_RATIO_CAP)


def _advantages(tokens: Tokens) -> torch.Tensor:
    zeros = torch.zeros_like(tokens.logprobs)
    return torch.where(tokens.mask, tokens.advantages.detach().to(zeros.dtype), zeros)


def _finish(
    tokens: Tokens,
    losses: torch.Tensor,
    log_ratio: torch.Tensor,
    flags: dict[str, torch.Tensor],
    reduction: Reduction,
) -> LossOutput:
    if tokens.weights is not None:
        weights = torch.where(tokens.mask, tokens.weights.detach(), torch.ones_like(losses))
        losses = losses * weights
    fixed = log_ratio.detach()
    index, count = _sequences(tokens.sequence)
    present = _lengths(tokens.mask, index, count)
    diagnostics = {
        "ratio_mean": _token_mean(fixed.exp(), tokens.mask),
        "ratio_max": _token_max(fixed.exp(), tokens.mask),
        "old_kl": _token_mean(torch.expm1(fixed) - fixed, tokens.mask),
        "tokens": tokens.mask.sum(),
        "sequences": (present > 0).sum(),
    }
    for name, flag in flags.items():
        diagnostics[name] = _token_mean(flag.to(fixed.dtype), tokens.mask)
    return LossOutput(aggregate(losses, tokens.mask, tokens.sequence, reduction), diagnostics)


def _sequences(sequence: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Each token's sequence as an index from 0, and how many there are."""
    numbers, index = torch.unique(sequence, return_inverse=True)
    return index, len(numbers)


def _sequence_mean(
    values: torch.Tensor, mask: torch.Tensor, index: torch.Tensor, count: int
) -> torch.Tensor:
    kept = torch.where(mask, values, torch.zeros_like(values))
    total = values.new_zeros(count).index_add(0, index, kept)
    return total / _lengths(mask, index, count).clamp(min=1)


def _lengths(mask: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """int64[sequences]: loss tokens of each; counted in integers, which do not round."""
    zeros = torch.zeros(count, device=mask.device, dtype=torch.int64)
    return zeros.index_add(0, index, mask.to(torch.int64))


def _token_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def _token_max(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if not len(values):
        return values.new_zeros(())
    return torch.where(mask, values, torch.zeros_like(values)).max()


def _divisor(reduction: Reduction, counted: torch.Tensor) -> torch.Tensor | float:
    return counted.clamp(min=1) if reduction.divisor is None else reduction.divisor
