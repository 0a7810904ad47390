"""The types of number that models are trained and sampled in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

#: PyTorch's names of the instructions that multiply matrices of bfloat16: x86-64's and ARM's.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")


def native() -> Literal["bfloat16", "float32"]:
    """bfloat16 where this machine's GPU, or else its processor, computes in it; float32 elsewhere.

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


def _settled(name: str) -> str:
    return native() if name == "native" else name


#: A type by name. `native` becomes the one that it stands for on this machine as soon as it is read, so
#: that a run is begun and gone on with in one type: on a machine where it stands for another, the run's
#: folder is one of another recipe.
Precision = Annotated[Literal["native", "bfloat16", "float32"], AfterValidator(_settled)]
