"""Attention over a token tree: a token attends to its ancestors and itself.

Registered with transformers under the name `tree`; the tree that is being computed is set with
`on_tree`. Three ways, equal in result. `dense` hands PyTorch's attention the mask of the whole
tree: the quickest for trees of few tokens or very many branches. `segments` computes each segment
against the keys of its path, and never builds that mask. `flex` hands it to FlexAttention as
blocks, compiled on a GPU: uncompiled it computes all scores of the whole tree. `auto` takes on a CPU
`dense` or `segments`, whichever computes less; above 2,048 tokens always `segments`, and `flex` on a
GPU, which would wait for the kernels of each segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rl.tree import TokenTree

NAME = "tree"
Way = Literal["auto", "dense", "segments", "flex"]
_DENSE = 2048
# What a segment costs a CPU beside its own products, in products of a query and a key: measured forward
# and backward with 4 and 9 heads of 64, on trees of 90 to 4,000 tokens and 13 to 97 segments.
_PER_SEGMENT = 3000


@dataclass(frozen=True)
class _Segment:
    """One run of queries.

    Attributes:
        path: numbers of its ancestors, root first, and its own.
        mask: bool[length, depth + length], true where seen; None where all of it, or a root.
    """

    path: tuple[int, ...]
    mask: torch.Tensor | None


@dataclass(frozen=True)
class _Plan:
    """What attention needs of a tree, made once for all layers; one of the three is given.

    `lengths` are those of the segments.
    """

    segments: tuple[_Segment, ...] = ()
    lengths: tuple[int, ...] = ()
    mask: torch.Tensor | None = None
    block_mask: Any = None


_plan: ContextVar[_Plan] = ContextVar("plan")


@contextmanager
def on_tree(tree: TokenTree, device: torch.device, way: Way = "auto") -> Iterator[None]:
    """Attention within follows this tree."""
    token = _plan.set(_planned(tree, device, way))
    try:
        yield
    finally:
        _plan.reset(token)


def captured() -> dict[str, Any]:
    """The tree of `on_tree` as an argument for a model; empty outside of it.

    Layers that are computed again in the backward pass need it: by then, and in autograd's own threads,
    the context is gone.
    """
    plan = _plan.get(None)
    return {} if plan is None else {"tree_plan": plan}


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
    tree_plan: _Plan | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """float[1, heads, n, d] in, float[1, n, heads, d] out."""
    plan = tree_plan or _plan.get()
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # In bfloat16 PyTorch sets up a oneDNN primitive for every block of keys anew, which takes longer
        # than computing in float32, above all backwards and for short segments.
        q, k, v = query.float(), key.float(), value.float()
        out = tree_attention(module, q, k, v, attention_mask, scaling, dropout, plan)[0]
        return out.to(query.dtype), None
    if plan.block_mask is not None:
        out = _flex(query.device.type).attend(
            query, key, value, block_mask=plan.block_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    if plan.mask is not None:
        out = scaled_dot_product_attention(
            query, key, value, plan.mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    # Split once and joined anew for each path: the gradient then flows through runs of rows, where
    # picking rows one by one would cost a tensor as large as the tree for every segment.
    lengths = list(plan.lengths)
    queries, keys, values = (torch.split(x, lengths, 2) for x in (query, key, value))
    parts = [
        _attend(
            segment,
            own,
            torch.cat([keys[number] for number in segment.path], dim=2),
            torch.cat([values[number] for number in segment.path], dim=2),
            scaling,
            dropout,
        )
        for segment, own in zip(plan.segments, queries, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    segment: _Segment,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention of one segment's queries over its path; float[1, heads, length, d]."""
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=segment.mask,
        is_causal=len(segment.path) == 1,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=True,
    )


class _Flex(NamedTuple):
    """FlexAttention's two functions."""

    attend: Callable[..., Any]
    blocks: Callable[..., Any]


@cache
def _flex(device: str) -> _Flex:
    """As they run on a kind of device: compiled once for a GPU, with lengths that vary."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device != "cuda":
        return _Flex(flex_attention, create_block_mask)
    return _Flex(torch.compile(flex_attention), torch.compile(create_block_mask))


def _planned(tree: TokenTree, device: torch.device, way: Way) -> _Plan:
    way = _chosen(tree, device) if way == "auto" else way
    if way == "flex":
        return _Plan(block_mask=_blocks(tree, device))
    if way == "dense":
        rows = np.arange(len(tree))
        seen = (rows[None, :] <= rows[:, None]) & (rows[:, None] < _ends(tree)[None, :])
        return _Plan(mask=torch.from_numpy(seen).to(device))
    return _segments(tree, device)


def _chosen(tree: TokenTree, device: torch.device) -> Way:
    """The cheapest way; a GPU waits for each segment's kernels."""
    if len(tree) > _DENSE:
        return "flex" if device.type == "cuda" else "segments"
    if device.type != "cpu":
        return "dense"
    depths = tree.positions[tree.starts[1:] - 1] + 1
    products = int((np.diff(tree.starts) * depths).sum())
    return "dense" if products + _PER_SEGMENT * len(depths) > len(tree) ** 2 else "segments"


def _segments(tree: TokenTree, device: torch.device) -> _Plan:
    lengths = np.diff(tree.starts).tolist()
    paths: list[tuple[int, ...]] = []
    found = []
    for number, (parent, length) in enumerate(zip(tree.parents.tolist(), lengths, strict=True)):
        paths.append((*paths[parent], number) if parent >= 0 else (number,))
        mask = None
        if parent >= 0 and length > 1:
            depth = int(tree.positions[tree.starts[number]])
            mask = torch.ones(length, depth + length, dtype=torch.bool, device=device)
            mask = mask.tril(diagonal=depth)
        found.append(_Segment(paths[number], mask))
    return _Plan(tuple(found), tuple(lengths))


def _ends(tree: TokenTree) -> npt.NDArray[np.int64]:
    """int64[n]: behind which row the tokens end that see each token. In depth-first order the
    descendants of a segment follow it without a gap: j is seen from i when j <= i < ends[j]."""
    last = tree.starts[1:].copy()
    for number in range(len(tree.parents) - 1, -1, -1):
        parent = int(tree.parents[number])
        if parent >= 0:
            last[parent] = max(last[parent], last[number])
    return np.repeat(last, np.diff(tree.starts))


def _blocks(tree: TokenTree, device: torch.device) -> Any:
    """FlexAttention's block mask of the same."""
    ends = torch.from_numpy(_ends(tree)).to(device)

    def seen(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return (column <= row) & (row < ends[column])

    found = _flex(device.type).blocks
    return found(seen, None, None, len(tree), len(tree), device=str(device))
