"""The JSON objects that a policy writes: read only where everything behind can hold them.

A policy may write anything: brackets without end, NaN, half of a surrogate pair as an escape, numbers of
a thousand digits. Checkpoints, stores and JSON readers refuse these one by one, long after the call.
"""

from __future__ import annotations

import json
import math
from typing import Any

_DEEPEST = 32  # arguments of tools are flat; records copy them recursively
_INT64 = 2**63


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None where it is none, or one that a record cannot hold: nested
    deeper than 32 levels, numbers that are not finite or have more than 64 bits, lone surrogates."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _fits(value, _DEEPEST) else None


def _fits(value: Any, levels: int) -> bool:
    """Whether a JSON value of at most so many levels fits into a record."""
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return levels > 0 and all(_fits(one, levels - 1) for one in inner)
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -_INT64 <= value < _INT64
