"""Trajectories to training rows, and rows to packs of bounded size.

A trajectory whose turns only append is one row. When the judge had an observation omitted, later
turns saw another context: they become a further row, in which only their own replies carry loss. So
every reply is trained once, in exactly the context it was written in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.trajectory import Span, Trajectory, TrajectoryError


@dataclass(frozen=True)
class Row:
    """One sequence to train on.

    Attributes:
        ids: int64[n].
        target: bool[n]; true where the token carries loss.
    """

    ids: npt.NDArray[np.int64]
    target: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pack:
    """Rows laid end to end; `lengths` tells where one ends and the next begins."""

    ids: npt.NDArray[np.int64]
    target: npt.NDArray[np.bool_]
    lengths: tuple[int, ...]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """int64[n]: position within the own row."""
        return np.concatenate([np.arange(length) for length in self.lengths])


def rows(trajectory: Trajectory) -> list[Row]:
    """The training rows of a trajectory; rows without a sampled token are left out.

    Raises:
        TrajectoryError: the trajectory has no token ids.
    """
    if not trajectory.has_tokens:
        raise TrajectoryError(
            f"trajectory {trajectory.id} has no token ids (policy {trajectory.policy})",
            "train on trajectories of a token-exact policy",
        )
    out: list[Row] = []
    seen: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    target: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
    for turn in trajectory.turns:
        context = _positions(turn.context)
        if len(seen) and not _extends(context, seen):
            out.append(Row(trajectory.token_ids[seen].astype(np.int64), target))
            target = np.zeros(0, dtype=np.bool_)
        reply = _positions([turn.reply])
        hidden = np.zeros(len(context) - len(target), dtype=np.bool_)
        target = np.concatenate([target, hidden, np.full(len(reply), turn.sampled)])
        seen = np.concatenate([context, reply])
    out.append(Row(trajectory.token_ids[seen].astype(np.int64), target))
    return [row for row in out if row.target.any()]


def pack(items: Iterable[Row], size: int) -> list[Pack]:
    """Put rows into packs of at most `size` tokens, next-fit; a longer row gets a pack of its own.

    The order of rows is kept, so that shuffling stays the caller's business.
    """
    packs: list[Pack] = []
    current: list[Row] = []
    used = 0
    for row in items:
        if current and used + len(row) > size:
            packs.append(_close(current))
            current, used = [], 0
        current.append(row)
        used += len(row)
    if current:
        packs.append(_close(current))
    return packs


def _close(items: Sequence[Row]) -> Pack:
    return Pack(
        np.concatenate([row.ids for row in items]),
        np.concatenate([row.target for row in items]),
        tuple(len(row) for row in items),
    )


def _positions(spans: Iterable[Span]) -> npt.NDArray[np.int64]:
    parts = [np.arange(span.start, span.stop, dtype=np.int64) for span in spans]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _extends(longer: npt.NDArray[np.int64], shorter: npt.NDArray[np.int64]) -> bool:
    return len(longer) >= len(shorter) and bool((longer[: len(shorter)] == shorter).all())
