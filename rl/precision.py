"""Which type of number `native` stands for in a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from rl.recipe import Strict
from rl.run_folder import RECIPE

#: PyTorch's names of the instructions that multiply matrices of bfloat16: x86-64's and ARM's.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")

S = TypeVar("S", bound=Strict)


def native() -> Literal["bfloat16", "float32"]:
    """bfloat16 where this machine's GPU, or its processor if it has none, computes in it, else float32.

    A processor without instructions for it emulates bfloat16, several times as slow as float32
    (`benchmarks/precision.py`).
    """
    import torch

    if torch.cuda.is_available():
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        computes = any(found.get(name, False) for name in _INSTRUCTIONS)
    return "bfloat16" if computes else "float32"


def settled(recipe: S, run: Path | None = None) -> S:
    """The recipe with a type in the place of every `native`.

    Args:
        recipe: of the run.
        run: its folder; a run goes on in the types that it was begun in, whatever machine it is on.
    """
    there: Any = {}
    if run is not None and (run / RECIPE).is_file():
        try:
            there = json.loads((run / RECIPE).read_text("utf-8"))
        except (OSError, ValueError):
            there = {}  # told by who claims the folder
    return _settled(recipe, there)


def _settled(section: S, there: Any) -> S:
    changes: dict[str, Any] = {}
    known = there if isinstance(there, Mapping) else {}
    for name in type(section).model_fields:
        value, begun = getattr(section, name), known.get(name)
        if isinstance(value, Strict):
            changes[name] = _settled(value, begun)
        elif name == "dtype" and value == "native":
            changes[name] = begun if begun in ("bfloat16", "float32") else native()
    return section.model_copy(update=changes)
