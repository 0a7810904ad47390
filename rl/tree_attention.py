"""Attention over a token tree: a token attends to its ancestors and itself.

Registered with transformers under the name `tree`; the tree that is being computed is set with
`on_tree`. Two ways, equal in result: `segments` computes each segment against the keys of its path, with
PyTorch's own attention, and never builds the mask of the whole tree; `flex` hands the whole mask to
FlexAttention as blocks, for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rl.tree import TokenTree

NAME = "tree"
Way = Literal["segments", "flex"]


@dataclass(frozen=True)
class _Segment:
    """One run of queries with the keys it sees: `above` of its ancestors and its own."""

    start: int
    stop: int
    above: torch.Tensor  # int64[depth]


@dataclass(frozen=True)
class _Plan:
    """What attention needs of a tree, made once for all layers."""

    segments: tuple[_Segment, ...] = ()
    block_mask: Any = None


_plan: ContextVar[_Plan] = ContextVar("plan")


@contextmanager
def on_tree(tree: TokenTree, device: torch.device, way: Way = "segments") -> Iterator[None]:
    """Attention within follows this tree (backward of a checkpointed layer included)."""
    plan = _Plan(block_mask=_blocks(tree, device)) if way == "flex" else _segments(tree, device)
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def register() -> None:
    """Make `tree` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """float[1, heads, n, d] in, float[1, n, heads, d] out."""
    plan = _plan.get()
    if plan.block_mask is not None:
        from torch.nn.attention.flex_attention import flex_attention

        out = flex_attention(
            query, key, value, block_mask=plan.block_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    parts = [_attend(segment, query, key, value, scaling, dropout) for segment in plan.segments]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    segment: _Segment,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention of one segment's queries; float[1, heads, length, d]."""
    own = slice(segment.start, segment.stop)
    q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
    depth, length = len(segment.above), segment.stop - segment.start
    mask = None
    if depth:
        k = torch.cat([key.index_select(2, segment.above), k], dim=2)
        v = torch.cat([value.index_select(2, segment.above), v], dim=2)
        if length > 1:
            mask = torch.ones(length, depth + length, dtype=torch.bool, device=q.device)
            mask = mask.tril(diagonal=depth)
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=not depth,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=True,
    )


def _segments(tree: TokenTree, device: torch.device) -> _Plan:
    found = []
    for number in range(len(tree.parents)):
        start, stop = int(tree.starts[number]), int(tree.starts[number + 1])
        above = torch.from_numpy(tree.path(number)[: -(stop - start)]).to(device)
        found.append(_Segment(start, stop, above))
    return _Plan(tuple(found))


def _blocks(tree: TokenTree, device: torch.device) -> Any:
    """FlexAttention's block mask: j is seen from i when j lies before i and j's segment spans i's.

    In depth-first order the descendants of a segment follow it without a gap: `last` is where they end.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    last = tree.starts[1:].copy()
    for number in range(len(tree.parents) - 1, -1, -1):
        parent = int(tree.parents[number])
        if parent >= 0:
            last[parent] = max(last[parent], last[number])
    ends = torch.from_numpy(np.repeat(last, np.diff(tree.starts))).to(device)

    def seen(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return (column <= row) & (row < ends[column])

    return create_block_mask(seen, None, None, len(tree), len(tree), device=str(device))
