"""Attention over packed rows: each row attends to itself alone, nothing is computed between rows.

Registered with transformers under the name `packed`. The row lengths of the pack that is being
computed are set with `row_lengths`; a block mask of the whole pack is never built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"
_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths")


@contextmanager
def row_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Attention within is split at these lengths (backward of a checkpointed layer included)."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row; float[1, heads, n, d] in, float[1, n, heads, d] out."""
    lengths = list(_lengths.get())
    parts = zip(*(torch.split(part, lengths, 2) for part in (query, key, value)), strict=True)
    out = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed attention needs no mask."""


def register() -> None:
    """Make `packed` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
