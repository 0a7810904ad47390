"""Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), on row numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fuse_rankings(rankings: Sequence[Sequence[int]], rrf_k: int) -> list[tuple[int, float]]:
    """Rows with the sum over the rankings of `1 / (rrf_k + rank)`, best first, ties by row.

    Args:
        rankings: rows, best first (rank 1), no row twice in one ranking.
        rrf_k: larger values flatten the difference between ranks.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (rrf_k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def unique_rows(rows: Sequence[int], canonical: NDArray[np.int32]) -> list[int]:
    """`rows` as the first row of the same text each, every one once, at its best rank."""
    return list(dict.fromkeys(int(canonical[row]) for row in rows))
