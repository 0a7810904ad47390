"""The tensors of a model folder's safetensors files, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.policies.model_folder import weight_files
from kg.errors import PolicyUnavailableError

_HEAD = "lm_head.weight"
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and tensor of every weight."""
    for opened in _opened(folder):
        for name in opened.keys():  # noqa: SIM118
            yield name, opened.get_tensor(name)


def tensor(folder: Path, name: str) -> Any:
    """The tensor of a name; None where the folder has none of it."""
    for opened in _opened(folder):
        if name in opened.keys():  # noqa: SIM118
            return opened.get_tensor(name)
    return None


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, read from the files' headers."""
    return {
        name: tuple(opened.get_slice(name).get_shape())
        for opened in _opened(folder)
        for name in opened.keys()  # noqa: SIM118
    }


def dtypes(folder: Path) -> dict[str, str]:
    """The type that every weight is stored in, such as `bfloat16`; of floating-point ones only."""
    return {
        name: _TYPES[opened.get_slice(name).get_dtype()]
        for opened in _opened(folder)
        for name in opened.keys()  # noqa: SIM118
        if opened.get_slice(name).get_dtype() in _TYPES
    }


def require_fit(folder: Path, weights: Path, tied: bool) -> None:
    """Refuse weights of other names and shapes than a model's, before anything is touched: engines skip
    what they do not find.

    Args:
        folder: of the model.
        weights: folder of the weights that are to take its place.
        tied: whether the head is the embedding, so that it may be there or not.

    Raises:
        PolicyUnavailableError: names the first tensor that differs; or they cannot be read.
    """
    try:
        ours, theirs = shapes(folder), shapes(weights)
    except Exception as error:  # safetensors has its own errors
        raise PolicyUnavailableError(f"the weights in {weights} cannot be read: {error}") from error
    if not theirs:
        raise PolicyUnavailableError(f"{weights} holds no model weights (*.safetensors)")
    if tied:
        ours.pop(_HEAD, None)
        theirs.pop(_HEAD, None)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise PolicyUnavailableError(
                f"the weights in {weights} do not fit: '{name}' is {_shape(theirs.get(name))}, "
                f"the model's {_shape(ours.get(name))}",
                "load weights of the same architecture; merge an adapter first",
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape))


def _opened(folder: Path) -> Iterator[Any]:
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                yield opened
