"""Digests of weights as an engine holds them, so that another process can tell whether they are its own.

An engine may hold a value under another name, fused with others, or in another type. A fingerprint
is of one tensor under the name it has in a model folder, in the type in which the engine computes
with it: who compares converts to that type first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One live tensor.

    Attributes:
        dtype: in which the engine holds it, such as `float32`.
        shape: as in the model folder.
        digest: SHA-256 in hex over its values in row order, -0 taken for 0; empty where the engine
            cannot give the values back.
        overwritten: of one without a digest: it was erased before the last load, and nothing of it was
            left out.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    overwritten: bool = False

    @property
    def readable(self) -> bool:
        """Whether the engine gave the values back."""
        return bool(self.digest)


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """The fingerprint of a tensor as it is; about 1 s a GB."""
    import torch

    values = tensor.detach()
    if values.is_floating_point():
        values = values + 0.0  # values read back through a matrix product have lost the sign of -0
    raw = values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return Fingerprint(dtype_name(tensor), tuple(tensor.shape), hashlib.sha256(raw).hexdigest())


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a tensor's type without its module: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
