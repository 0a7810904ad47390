"""Checks on the values of a stored record, which may come from another program.

Python's annotations do not bind, and numpy turns `"7"` and `1.5` into token ids without a word; here a
record that is not what the format says is a `ValueError` that names the place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

_MAX_ID = 64
_INT32 = np.iinfo(np.int32)


def utc(text: str) -> str:
    """The same instant in the one form whose order as text is the order in time.

    Args:
        text: an ISO 8601 date or time; UTC when it names no zone.

    Raises:
        ValueError: it is neither.
    """
    try:
        time = datetime.fromisoformat(text)
        zoned = time if time.tzinfo else time.replace(tzinfo=UTC)
        return zoned.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no ISO 8601 time") from error


def check_id(id: str) -> None:
    """Refuse ids that a database, a URL or a terminal could not hold.

    Raises:
        ValueError: empty, longer than 64 characters, or with unprintable characters.
    """
    if not (0 < len(id) <= _MAX_ID and id.isprintable()):
        raise ValueError(f"the id {id[:80]!r} is not 1 to {_MAX_ID} printable characters")


def token_array(values: Sequence[int] | npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """int32[n] of token ids.

    Raises:
        ValueError: a value is not a whole number of 32 bits.
    """
    array = np.asarray(values)
    if not array.size:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError("token_ids: not whole numbers of 32 bits")
    if array.min() < _INT32.min or array.max() > _INT32.max:
        raise ValueError("token_ids: a value has more than 32 bits")
    return array.astype(np.int32)


def logprob_array(
    values: Sequence[float | None] | npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """float32[n] of log-probabilities, NaN for None.

    Raises:
        ValueError: a value is not a number.
    """
    if not isinstance(values, np.ndarray):
        values = np.asarray([math.nan if x is None else x for x in values])
    if values.size and values.dtype.kind not in "fiu":
        raise ValueError("logprobs: not numbers")
    return values.astype(np.float32)


def check_types(value: object, hint: Any, place: str = "") -> None:
    """Refuse a value that does not have its annotated type, fields of dataclasses included.

    A float may be an int; a bool is not a number.

    Raises:
        ValueError: naming the first place that is wrong.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return
    if kind in (Union, UnionType):
        _check_union(value, arguments, place)
    elif not _is_a(value, kind):
        raise ValueError(f"{place.lstrip('.')}: {type(value).__name__} where {_name(kind)} belongs")
    elif is_dataclass(kind) or hasattr(kind, "_fields"):
        for name, inner in _hints(kind).items():
            check_types(getattr(value, name), inner, f"{place}.{name}")
    else:
        for where, item, inner in _items(value, kind, arguments):
            check_types(item, inner, f"{place}{where}")


def _check_union(value: object, choices: tuple[Any, ...], place: str) -> None:
    """A value of a union is checked as the choice of its own class: the error is then precise."""
    if value is None and type(None) in choices:
        return
    kinds = [choice for choice in choices if choice is not type(None)]
    fitting = [kind for kind in kinds if _is_a(value, get_origin(kind) or kind)]
    check_types(value, (fitting or kinds)[0], place)


def _is_a(value: object, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _items(value: Any, kind: Any, arguments: tuple[Any, ...]) -> list[tuple[str, object, Any]]:
    if kind is dict and arguments:
        key, inner = arguments
        keys = [(f" key {name!r}", name, key) for name in value]
        return keys + [(f".{name}", item, inner) for name, item in value.items()]
    if kind is not tuple:
        return []
    if arguments[-1] is Ellipsis:
        return [(f"[{i}]", item, arguments[0]) for i, item in enumerate(value)]
    if len(value) != len(arguments):
        raise ValueError(f"{len(value)} values where {len(arguments)} belong")
    return [(f"[{i}]", *pair) for i, pair in enumerate(zip(value, arguments, strict=True))]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind._fields
    found = get_type_hints(kind)
    return {name: found[name] for name in names}


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
