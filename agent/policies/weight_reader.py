"""The tensors of a model folder's safetensors files, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.policies.model_folder import weight_files

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


def _opened(folder: Path) -> Iterator[Any]:
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                yield opened
