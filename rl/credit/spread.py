"""Means and standard deviations of pools of rewards, with the corner cases decided once.

A pool of equal numbers has exactly that mean and exactly no spread, whatever rounding says: noise
of 1e-17 divided by a small `eps` must not become an advantage. A pool of one has no spread either.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rl.credit.group import CreditError, Floats

Std = Literal["sample", "population"]
Eps = Annotated[float, Field(ge=0)]


def mean(pool: Floats) -> float:
    """Arithmetic mean; exact for equal numbers, 0 for an empty pool."""
    if pool.size == 0:
        return 0.0
    return float(pool.flat[0]) if _constant(pool) else float(pool.mean())


def deviation(pool: Floats, std: Std) -> float:
    """Standard deviation: `sample` divides by size - 1, `population` by size.

    0 for equal numbers, for a single number and for an empty pool.

    Raises:
        CreditError: another word for `std`.
    """
    if std not in ("sample", "population"):
        raise CreditError(f"std is '{std}'", "it is 'sample' or 'population'")
    if pool.size < 2 or _constant(pool):
        return 0.0
    return float(pool.std(ddof=1 if std == "sample" else 0))


def divisor(pool: Floats, std: Std, eps: float) -> float:
    """`deviation` and `eps`; 1 where there is no spread, so that equal rewards give exactly 0.

    Raises:
        CreditError: `eps` is negative, which could turn all signs around; another word for `std`.
    """
    if not eps >= 0:
        raise CreditError(f"eps is {eps}", "it is 0 or more")
    spread = deviation(pool, std)
    return spread + eps if spread > 0 else 1.0


def _constant(pool: Floats) -> bool:
    return bool(np.ptp(pool) == 0.0)
