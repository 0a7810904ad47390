"""What credit is computed over: named rewards per turn, and where turns lie in the tokens.

Axes are written [n, turns]: trajectory, turn. Trajectories have fewer turns than others where
`turn_mask` is false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kg.errors import UsageError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
RaggedRewards = Sequence[Sequence[float | None]]


class CreditError(UsageError):
    """Credit cannot be computed.

    Attributes:
        trajectory: id of the trajectory at fault; empty when the batch as a whole is.
        turn: number of the turn at fault, from 0; None when no single one is.
    """

    def __init__(
        self, message: str, hint: str = "", *, trajectory: str = "", turn: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.trajectory = trajectory
        self.turn = turn


@dataclass(frozen=True)
class RewardPart:
    """One named reward.

    Attributes:
        name: of the reward.
        values: float64[n, turns], weights applied.
        given: bool[n, turns]; false where this reward says nothing, which is not the same as 0:
            such turns are no part of the pool that it is normalised over.
    """

    name: str
    values: Floats
    given: Bools


@dataclass(frozen=True)
class Batch:
    """Trajectories of one or more groups, with their rewards.

    Attributes:
        ids: a name per trajectory, for errors and receipts.
        group: int64[n]; trajectories with equal numbers are compared. Any numbers, in any order.
        turn_mask: bool[n, turns]; true on a trajectory's turns, which come first.
        parts: rewards by name; the reward of a turn is the sum of the parts given there.
        spans: per trajectory int64[its turns, 2]: half-open token ranges of its replies, ascending.
        sampled: per trajectory bool[its tokens]; true where the policy sampled the token.
        values: per trajectory float64[its tokens]: predicted return before each token, for GAE.
        anchors: int64[n, turns]: equal numbers mark equal states before the turn, for GiGPO.
    """

    ids: tuple[str, ...]
    group: Ints
    turn_mask: Bools
    parts: tuple[RewardPart, ...]
    spans: tuple[Ints, ...]
    sampled: tuple[Bools, ...]
    values: tuple[Floats, ...] | None = None
    anchors: Ints | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        for i, name in enumerate(self.ids):
            _check_tokens(self, i, name)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def ragged(
        cls,
        group: Sequence[int],
        rewards: Mapping[str, RaggedRewards],
        *,
        ids: Sequence[str] = (),
        spans: Sequence[Sequence[tuple[int, int]]] | None = None,
        sampled: Sequence[Sequence[bool] | Bools] | None = None,
        values: Sequence[Sequence[float]] | None = None,
        anchors: Sequence[Sequence[int]] | None = None,
    ) -> Batch:
        """A batch from rows of unequal length.

        Args:
            group: group number per trajectory.
            rewards: name to one row per trajectory, one entry per turn; None where not given.
            ids: names of trajectories; their position when left out.
            spans: token ranges of the turns; one token per turn when left out.
            sampled: loss masks; exactly the tokens of the turns when left out.
            values: value predictions per token.
            anchors: state numbers per turn.

        Raises:
            CreditError: lengths that do not fit together, or a span or mask out of place.
        """
        lengths = _turn_counts(rewards, len(group))
        mask = np.arange(max(lengths, default=0)) < np.array(lengths, dtype=np.int64)[:, None]
        if spans is None:
            spans = [[(k, k + 1) for k in range(length)] for length in lengths]
        ranges = tuple(np.array(row, dtype=np.int64).reshape(-1, 2) for row in spans)
        if sampled is None:
            masks = tuple(_covered(row) for row in ranges)
        else:
            masks = tuple(np.array(row, dtype=np.bool_) for row in sampled)
        return cls(
            ids=tuple(ids) or tuple(str(i) for i in range(len(group))),
            group=np.array(group, dtype=np.int64),
            turn_mask=mask,
            parts=tuple(_part(name, rows, mask) for name, rows in rewards.items()),
            spans=ranges,
            sampled=masks,
            values=None if values is None else tuple(np.array(v, dtype=np.float64) for v in values),
            anchors=None if anchors is None else _padded(anchors, mask),
        )

    @cached_property
    def rewards(self) -> Floats:
        """float64[n, turns]: reward of each turn, all parts together; 0 beyond the last turn."""
        total = np.zeros(self.turn_mask.shape)
        for part in self.parts:
            total += np.where(part.given, part.values, 0.0)
        return total

    @property
    def outcomes(self) -> Floats:
        """float64[n]: reward of each trajectory, all turns together."""
        total: Floats = self.rewards.sum(axis=1)
        return total

    @property
    def turns(self) -> Ints:
        """int64[n]: how many turns each trajectory has."""
        count: Ints = self.turn_mask.sum(axis=1)
        return count

    @cached_property
    def tokens(self) -> Ints:
        """int64[n, turns]: sampled tokens of each turn."""
        counts = np.zeros(self.turn_mask.shape, dtype=np.int64)
        for i, row in enumerate(self.spans):
            for k, (start, stop) in enumerate(row):
                counts[i, k] = self.sampled[i][start:stop].sum()
        return counts

    @cached_property
    def groups(self) -> list[Ints]:
        """Row numbers of each group, by ascending group number. A group has at least one row."""
        return [np.flatnonzero(self.group == number) for number in np.unique(self.group)]

    def take(self, rows: Ints) -> Batch:
        """The batch of these rows, in this order."""
        return Batch(
            ids=tuple(self.ids[i] for i in rows),
            group=self.group[rows],
            turn_mask=self.turn_mask[rows],
            parts=tuple(RewardPart(p.name, p.values[rows], p.given[rows]) for p in self.parts),
            spans=tuple(self.spans[i] for i in rows),
            sampled=tuple(self.sampled[i] for i in rows),
            values=None if self.values is None else tuple(self.values[i] for i in rows),
            anchors=None if self.anchors is None else self.anchors[rows],
        )


def suffix_returns(rewards: Floats, gamma: float) -> Floats:
    """float64[n, turns]: discounted sum of each turn's reward and all later ones.

    gamma = 0 gives the rewards themselves, gamma = 1 plain suffix sums. Padding must be 0.
    """
    returns = np.zeros_like(rewards)
    running = np.zeros(len(rewards))
    for turn in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, turn] + gamma * running
        returns[:, turn] = running
    return returns


def _turn_counts(rewards: Mapping[str, RaggedRewards], n: int) -> list[int]:
    if not rewards:
        raise CreditError("a batch needs at least one reward part")
    for name, rows in rewards.items():
        if len(rows) != n:
            raise CreditError(f"reward '{name}' has {len(rows)} rows for {n} trajectories")
    counts = [len(row) for row in next(iter(rewards.values()))]
    for name, rows in rewards.items():
        for i, row in enumerate(rows):
            if len(row) != counts[i]:
                message = (
                    f"reward '{name}' has {len(row)} turns in row {i}; others have {counts[i]}"
                )
                raise CreditError(message, trajectory=str(i))
    return counts


def _part(name: str, rows: RaggedRewards, mask: Bools) -> RewardPart:
    values, given = np.zeros(mask.shape), np.zeros(mask.shape, dtype=np.bool_)
    for i, row in enumerate(rows):
        for k, value in enumerate(row):
            if value is not None:
                values[i, k], given[i, k] = value, True
    return RewardPart(name, values, given)


def _padded(rows: Sequence[Sequence[int]], mask: Bools) -> Ints:
    out = np.zeros(mask.shape, dtype=np.int64)
    for i, row in enumerate(rows):
        if len(row) != mask[i].sum():
            message = f"row {i} has {len(row)} anchors for {mask[i].sum()} turns"
            raise CreditError(message, trajectory=str(i))
        out[i, : len(row)] = row
    return out


def _covered(spans: Ints) -> Bools:
    mask = np.zeros(int(spans[-1, 1]) if len(spans) else 0, dtype=np.bool_)
    for start, stop in spans:
        mask[start:stop] = True
    return mask


def _check_shapes(batch: Batch) -> None:
    n, shape = len(batch.ids), batch.turn_mask.shape
    rows = {"group": len(batch.group), "spans": len(batch.spans), "sampled": len(batch.sampled)}
    if batch.values is not None:
        rows["values"] = len(batch.values)
    for name, count in rows.items():
        if count != n:
            raise CreditError(f"{name} has {count} rows for {n} trajectories")
    if len(shape) != 2 or shape[0] != n:
        raise CreditError(f"turn_mask has the shape {shape} for {n} trajectories")
    tables = {part.name: (part.values.shape, part.given.shape) for part in batch.parts}
    if batch.anchors is not None:
        tables["anchors"] = (batch.anchors.shape, shape)
    for name, shapes in tables.items():
        if set(shapes) != {shape}:
            raise CreditError(f"{name} has the shape {shapes[0]}, turn_mask has {shape}")
    if (np.diff(batch.turn_mask.astype(np.int8), axis=1) > 0).any():
        raise CreditError("turn_mask has a gap: a trajectory's turns come first")
    for part in batch.parts:
        if (part.given & ~batch.turn_mask).any():
            raise CreditError(f"reward '{part.name}' is given beyond a trajectory's last turn")


def _check_tokens(batch: Batch, i: int, name: str) -> None:
    spans, sampled = batch.spans[i], batch.sampled[i]
    where = f"trajectory {name}"
    if spans.shape != (batch.turn_mask[i].sum(), 2):
        message = f"{where}: spans of shape {spans.shape} for {batch.turn_mask[i].sum()} turns"
        raise CreditError(message, trajectory=name)
    edge = 0
    for k, (start, stop) in enumerate(spans):
        if not edge <= start <= stop <= len(sampled):
            message = f"{where}, turn {k}: span {start}..{stop} in {edge}..{len(sampled)}"
            raise CreditError(message, trajectory=name, turn=k)
        edge = int(stop)
    inside = np.zeros(len(sampled), dtype=np.bool_)
    for start, stop in spans:
        inside[start:stop] = True
    stray = np.flatnonzero(sampled & ~inside)
    if len(stray):
        raise CreditError(f"{where}: sampled token {stray[0]} is in no turn", trajectory=name)
    if batch.values is not None and batch.values[i].shape != sampled.shape:
        message = f"{where}: {len(batch.values[i])} values for {len(sampled)} tokens"
        raise CreditError(message, trajectory=name)
