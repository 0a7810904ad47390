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

from kg.errors import UsageError

NAME = "packed"
_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths")


@contextmanager
def row_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Attention within is split at these lengths."""
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
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row; float[1, heads, n, d] in, float[1, n, heads, d] out."""
    lengths = list(_lengths.get())
    parts = zip(*(torch.split(part, lengths, 2) for part in (query, key, value)), strict=True)
    out = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        for q, k, v in parts
    ]
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed attention needs no mask."""


def require_plain(config: Any, longest: int) -> None:
    """See that packed attention and a bare vocabulary projection compute what a model does.

    Args:
        config: of the model, as transformers has it.
        longest: tokens of the longest row or path; a sliding window at least so wide changes nothing.

    Raises:
        UsageError: they do not, because of a named field.
    """
    text = config.get_text_config()
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(text, name, None):
            raise _unsupported(name, getattr(text, name))
    for name in ("logits_scaling", "logit_scale"):
        if getattr(text, name, None) not in (None, 1):
            raise _unsupported(name, getattr(text, name))
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if strange := kinds - {"full_attention", "sliding_attention"}:
        raise _unsupported("layer_types", sorted(strange))
    window = getattr(text, "sliding_window", None)
    used = getattr(text, "use_sliding_window", True)
    if window and used and window < longest:
        raise _unsupported("sliding_window", window)


def _unsupported(name: str, value: object) -> UsageError:
    return UsageError(
        f"this model cannot be trained here: its {name} is {value}",
        "choose a model with plain causal attention; where a window is the reason, fine-tuning on rows "
        "and packs (pack_tokens) that fit into it will do",
    )


def register() -> None:
    """Make `packed` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
