"""What credit comes to: an advantage per token, and the ledger that explains every one of them.

Each column of the ledger follows from those before it: reward parts, normalised parts, return,
baseline, advantage. So a receipt can show any turn's numbers, and they add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from rl.credit.group import Bools, CreditError, Floats, Ints, suffix_returns


class Unit(StrEnum):
    """What one return is counted for, and so what shares one advantage before scaling."""

    TRAJECTORY = "trajectory"
    TURN = "turn"
    TOKEN = "token"  # noqa: S105


@dataclass(frozen=True)
class PartAccount:
    """How one reward part was normalised: (value - center) / scale where given, 0 elsewhere.

    All arrays are [n, turns]; an estimator that does not touch single rewards has center 0, scale 1.
    """

    name: str
    value: Floats
    given: Bools
    center: Floats
    scale: Floats

    @property
    def normalised(self) -> Floats:
        """float64[n, turns]."""
        return np.where(self.given, (self.value - self.center) / self.scale, 0.0)


@dataclass(frozen=True)
class Term:
    """One summand of the advantage: weight x (returns - baseline - center) / scale.

    Attributes:
        name: of the summand.
        unit: what one return is counted for. With TOKEN, the entries are means over the turn's
            sampled tokens (0 for a turn that has none).
        returns, baseline: float64[n, turns].
        center: float64[n, turns]: mean that whitening took off.
        scale: float64[n, turns]: divisor, 1 where nothing is divided.
        weight: factor.
        discount: of later turns in `returns`; None where returns are not plain sums of rewards
            (bootstrapped from values, or discounted token by token).
    """

    name: str
    unit: Unit
    returns: Floats
    baseline: Floats
    center: Floats
    scale: Floats
    weight: float = 1.0
    discount: float | None = 1.0

    @property
    def advantage(self) -> Floats:
        """float64[n, turns]."""
        return self.weight * (self.returns - self.baseline - self.center) / self.scale


@dataclass(frozen=True)
class TermReceipt:
    """One summand at one turn; see `Term`."""

    name: str
    unit: Unit
    returns: float
    baseline: float
    center: float
    scale: float
    weight: float
    advantage: float


@dataclass(frozen=True)
class TurnReceipt:
    """Every number behind the advantage of one turn.

    Attributes:
        trajectory, turn: which one; turns count from 0.
        parts: raw rewards by name, only those given at this turn.
        normalised: the same after normalisation.
        terms: the summands of the advantage.
        advantage: their sum; the mean over the turn's tokens when tokens differ.
        tokens: sampled tokens that carry it.
    """

    trajectory: str
    turn: int
    parts: dict[str, float]
    normalised: dict[str, float]
    terms: tuple[TermReceipt, ...]
    advantage: float
    tokens: int


@dataclass(frozen=True)
class Ledger:
    """The explanation of a `Credit`; all arrays are [n, turns]."""

    ids: tuple[str, ...]
    turn_mask: Bools
    tokens: Ints
    parts: tuple[PartAccount, ...]
    terms: tuple[Term, ...]

    @property
    def normalised(self) -> Floats:
        """float64[n, turns]: normalised reward of each turn, all parts together."""
        total = np.zeros(self.turn_mask.shape)
        for part in self.parts:
            total += part.normalised
        return total

    @property
    def advantage(self) -> Floats:
        """float64[n, turns]: sum of the terms; 0 beyond the last turn."""
        total = np.zeros(self.turn_mask.shape)
        for term in self.terms:
            total += term.advantage
        return np.where(self.turn_mask, total, 0.0)

    def receipt(self, trajectory: int, turn: int) -> TurnReceipt:
        """The numbers of one turn of the trajectory in this row.

        Raises:
            CreditError: there is no such turn, or the trajectory was dropped.
        """
        inside = 0 <= trajectory < len(self.ids) and 0 <= turn < self.turn_mask.shape[1]
        if not inside or not self.turn_mask[trajectory, turn]:
            raise CreditError(f"no credit at trajectory {trajectory}, turn {turn}", turn=turn)
        at = (trajectory, turn)
        given = [part for part in self.parts if part.given[at]]
        return TurnReceipt(
            self.ids[trajectory],
            turn,
            {part.name: float(part.value[at]) for part in given},
            {part.name: float(part.normalised[at]) for part in given},
            tuple(_term_receipt(term, at) for term in self.terms),
            float(self.advantage[at]),
            int(self.tokens[at]),
        )

    def residual(self) -> float:
        """Largest gap between a column of returns and the sum of rewards that it claims to be.

        Zero up to rounding. Terms without a `discount` are bootstrapped and not checked.
        """
        gaps = [0.0]
        for term in self.terms:
            if term.discount is None or term.unit is Unit.TOKEN or not self.turn_mask.any():
                continue
            if term.unit is Unit.TURN:
                expected = suffix_returns(self.normalised, term.discount)
            else:
                expected = np.broadcast_to(
                    self.normalised.sum(axis=1, keepdims=True), self.turn_mask.shape
                )
            gaps.append(float(np.abs(expected - term.returns)[self.turn_mask].max()))
        return max(gaps)


@dataclass(frozen=True)
class Credit:
    """What an estimator comes to.

    Attributes:
        advantages: per trajectory float64[its tokens]; exactly 0 where the policy did not sample.
        ledger: where they came from.
        dropped: one error per trajectory that was left out; its advantages are all 0 and its turns
            are not in the ledger's mask.
        targets: of an estimator that reads values, per trajectory float64[its tokens]: the return that
            the value before a token is to predict, NaN where no value was read.
    """

    advantages: tuple[Floats, ...]
    ledger: Ledger
    dropped: tuple[CreditError, ...] = ()
    targets: tuple[Floats, ...] | None = None


def _term_receipt(term: Term, at: tuple[int, int]) -> TermReceipt:
    numbers = (term.returns, term.baseline, term.center, term.scale)
    returns, baseline, center, scale = (float(column[at]) for column in numbers)
    advantage = float(term.advantage[at])
    return TermReceipt(
        term.name, term.unit, returns, baseline, center, scale, term.weight, advantage
    )
