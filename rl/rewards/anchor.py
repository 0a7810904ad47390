"""The leash to the weights that a run began with, as a reward.

Source: Learning to summarize from human feedback (arXiv 2009.01325), section 3.4. k1 = log p(policy) -
log p(anchor) of a token is an unbiased value of the KL divergence where the policy sampled the token;
differentiated as a loss it has no gradient at all, so that the reward is its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from agent.trajectory import Trajectory
from rl.rewards.base import UNBOUNDED, Bools, Range, Reward, RewardError, Values, at_turns, nothing
from rl.rewards.context import Need, RewardContext
from rl.rewards.registry import register


@register
class AnchorKl(Reward):
    """Minus the sum of k1 over each turn's sampled tokens, in nats.

    `loss.anchor` with `into: reward` adds it under the label `kl`, with the coefficient as its weight.
    """

    name: ClassVar[str] = "anchor_kl"
    source: ClassVar[str] = "KL penalty in the reward, arXiv 2009.01325"

    @property
    def range(self) -> Range:
        """A single sample of a divergence may have either sign."""
        return UNBOUNDED

    @property
    def needs(self) -> tuple[Need, ...]:
        """Both log-probabilities of each token, subtracted."""
        return (Need.ANCHOR,)

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns that the policy wrote."""
        return at_turns(trajectory, (t for t, turn in enumerate(trajectory.turns) if turn.sampled))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Minus k1, by turn."""
        missing = [t.id for t in group if t.turns and t.id not in context.anchor_kl]
        if missing:
            raise RewardError("no anchor log-probabilities", missing[0])
        return [-context.anchor_kl[t.id] if t.turns else nothing(t) for t in group]
