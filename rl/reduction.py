"""What each token weighs in a loss: the aggregations of `rl.losses`, as numbers, and the words that
recipes and losses share. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Aggregation: TypeAlias = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]
KlEstimator: TypeAlias = Literal["k1", "k2", "k3"]
Level: TypeAlias = Literal["token", "sequence"]


def token_weights(
    masks: Sequence[npt.NDArray[np.bool_]], how: Aggregation = "token-mean", constant: float = 1.0
) -> tuple[npt.NDArray[np.float64], ...]:
    """What the loss of a batch multiplies each token's loss with before it sums.

    Args:
        masks: per sequence bool[its tokens]: loss tokens. Sequences without any count for nothing.
        how: see `rl.losses.aggregate`.
        constant: tokens per sequence that `constant` divides by.

    Returns:
        Per sequence float64[its tokens], 0 outside the mask.
    """
    lengths = np.array([int(mask.sum()) for mask in masks], dtype=np.int64)
    sequences = max(1, int((lengths > 0).sum()))
    by_how = {
        "token-mean": np.full(len(masks), max(1, int(lengths.sum()))),
        "sequence-mean": sequences * np.maximum(lengths, 1),
        "sequence-sum": np.full(len(masks), sequences),
        "constant": np.full(len(masks), sequences * constant),
    }
    return tuple(mask / divisor for mask, divisor in zip(masks, by_how[how], strict=True))
