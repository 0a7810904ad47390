"""JSON that every reader takes: no NaN and no Infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """JSON values: floats that are not finite become None, keys text, tuples lists."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """`json.dumps` of `finite(value)`."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)
