"""The part of a recipe that needs no model: rewards, credit, and the loss that they go into."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rl.credit import find
from rl.recipe import Recipe, Strict
from rl.reduction import Aggregation, KlEstimator, Level
from rl.rewards import Combination, Need, Part
from rl.rewards.information_gain import InformationGain, StepGain

#: Label of the reward part that an anchor in the reward becomes.
KL = "kl"


class CreditChoice(Strict):
    """A credit estimator by name and its options; see docs/credit.md.

    Attributes:
        declined: what becomes of rollouts that declined to answer. `compare` them with the others of
            their group; or `leave_out`: only those that did not decline are compared. Declining then
            counts for as much as the question's other rollouts earn on average.
    """

    estimator: str
    options: dict[str, Any] = Field(default_factory=dict)
    declined: Literal["compare", "leave_out"] = "compare"

    @model_validator(mode="after")
    def _known(self) -> Self:
        find(self.estimator).checked(self.options)
        return self


class Correction(Strict):
    """Factors for the gap between the engine's log-probabilities and the trainer's; see
    `rl.losses.importance_weights`. The bounds lie on either side of 1, the factor where there is no gap.
    """

    level: Level = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(2.0, ge=1)

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.low is not None and self.low == self.high:
            raise ValueError("low and high are equal: every factor would be the same, or masked")
        return self


class Anchor(Strict):
    """A leash to the weights that the run began with.

    Attributes:
        coefficient: of the KL term.
        into: `loss` adds the KL to the loss; `reward` takes k1 of each turn times the coefficient off
            its reward, as the reward part `kl`, before credit.
        value, gradient: estimators of the loss term; see `rl.losses.kl_loss`. The gradient is k2's,
            that of this KL, or k3's, that of KL(start || policy); k1's is 0 in expectation and refused.
    """

    coefficient: float = Field(gt=0)
    into: Literal["loss", "reward"] = "loss"
    value: KlEstimator = "k3"
    gradient: KlEstimator = "k2"

    @field_validator("gradient")
    @classmethod
    def _descends(cls, value: KlEstimator) -> KlEstimator:
        if value == "k1":
            raise ValueError(
                "k1's gradient is 0 in expectation: it would hold nothing; take k2 (this KL) or k3 (the "
                "forward KL), or put k1 into the reward: into: reward"
            )
        return value


class LossChoice(Strict):
    """The policy loss; see `rl.losses`.

    Attributes:
        kind: a ratio a token (`ppo_clip`) or a sequence (`gspo`).
        aggregation: `token-mean`, `sequence-mean`, `sequence-sum` or `constant`.
        constant: tokens per sequence that `constant` divides by.
        low, high, dual: clip bounds. Of `gspo` they default to 3e-4 and 4e-4, its aggregation to
            `sequence-mean`, and it has no dual clip.
        correction: for the engine's log-probabilities; null trusts them to be the trainer's.
        anchor: null for none.
        entropy: coefficient of the entropy bonus.
        likelihood: coefficient of the mean log-probability of right replies, each where a trajectory's
            last call stood and what it saw supports the answer; see `rl.imitation`.
    """

    kind: Literal["ppo_clip", "gspo"] = "ppo_clip"
    aggregation: Aggregation = "token-mean"
    constant: float = Field(1.0, gt=0)
    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.2, ge=0)
    dual: float | None = Field(None, gt=1)
    correction: Correction | None = Correction()
    anchor: Anchor | None = None
    entropy: float = Field(0.0, ge=0)
    likelihood: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_gspo(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("kind") != "gspo":
            return given
        if given.get("dual") is not None:
            raise ValueError("gspo has no dual clip")
        return {"low": 3e-4, "high": 4e-4, "aggregation": "sequence-mean", **given}


class Assessment(Recipe):
    """How trajectories are judged.

    Attributes:
        rewards: label to registered reward, weight and options; labels are what receipts call them.
        credit: the estimator.
        loss: the policy loss and its aggregation.

    Raises:
        UsageError: an unknown reward, estimator or option; the nearest is suggested. Or parts of
            information gain, or of step gain, that ask for different probes: an episode has one table
            of each.
    """

    command = "agent train"

    rewards: dict[str, Part] = Field(min_length=1)
    credit: CreditChoice
    loss: LossChoice = LossChoice()

    @model_validator(mode="after")
    def _made(self) -> Self:
        assert self.reward
        if len(asked := {(one.before, one.alias) for one in self._gains}) > 1:
            raise ValueError(f"parts of information_gain differ in 'before' or 'alias': {asked}")
        if len(opened := {one.before for one in self._step_gains}) > 1:
            raise ValueError(f"parts of step_gain differ in 'before': {opened}")
        return self

    @cached_property
    def reward(self) -> Combination:
        """The rewards, made; with the KL among them where the anchor goes into the reward."""
        return Combination(parts={**self.rewards, **self._leash})

    @property
    def _leash(self) -> dict[str, Part]:
        anchor = self.loss.anchor
        if anchor is None or anchor.into != "reward":
            return {}
        if KL in self.rewards:
            raise ValueError(f"the label '{KL}' is the anchor's: give the reward another one")
        return {KL: Part(reward="anchor_kl", weight=anchor.coefficient)}

    @property
    def needs_anchor(self) -> bool:
        """Whether a reward reads the anchor's log-probabilities."""
        return Need.ANCHOR in self.reward.needs

    @property
    def needs_probes(self) -> bool:
        """Whether a reward reads information-gain probes."""
        return Need.PROBES in self.reward.needs

    @property
    def needs_scorer(self) -> bool:
        """Whether a reward reads probes of any kind, which a model has to compute."""
        return self.needs_probes or Need.STEP_PROBES in self.reward.needs

    @property
    def gain(self) -> InformationGain:
        """The first information gain of the recipe, whose probes are those of all; the default where it
        has none."""
        return next(self._gains, InformationGain())

    @property
    def step_gain(self) -> StepGain:
        """The same of gains about the answers of steps."""
        return next(self._step_gains, StepGain())

    @property
    def _gains(self) -> Iterator[InformationGain]:
        return (one for one in self.reward.leaves if isinstance(one, InformationGain))

    @property
    def _step_gains(self) -> Iterator[StepGain]:
        return (one for one in self.reward.leaves if isinstance(one, StepGain))
