"""How well a ranking found what it should have: hit@k, recall@k, MRR, nDCG. Pure.

Relevance is binary; a ranking lists each document once (repeats count at their first place).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def hit_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1.0 when a relevant document is among the first `k`."""
    return float(bool(set(_first(ranked, k)) & set(relevant)))


def recall_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant documents among the first `k`.

    Raises:
        ValueError: nothing is relevant, so there is nothing to recall.
    """
    wanted = _wanted(relevant)
    return len(wanted & set(_first(ranked, k))) / len(wanted)


def mrr(ranked: Sequence[str], relevant: Collection[str], k: int | None = None) -> float:
    """1 over the rank of the first relevant document; 0 when there is none within `k`."""
    wanted = set(relevant)
    return next((1 / rank for rank, id in enumerate(_first(ranked, k), 1) if id in wanted), 0.0)


def ndcg_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Discounted gain over that of the best ranking, with discount log2(rank + 1).

    Raises:
        ValueError: nothing is relevant.
    """
    wanted = _wanted(relevant)
    gain = sum(
        1 / math.log2(rank + 1) for rank, id in enumerate(_first(ranked, k), 1) if id in wanted
    )
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))


def _first(ranked: Sequence[str], k: int | None) -> list[str]:
    return list(dict.fromkeys(ranked))[:k]


def _wanted(relevant: Collection[str]) -> set[str]:
    if not relevant:
        raise ValueError("no document is relevant")
    return set(relevant)
