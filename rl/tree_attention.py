"""Attention over a token tree: a token attends to its ancestors and itself.

Registered with transformers under the name `tree`; the tree that is being computed is set with
`on_tree`. Three ways, equal in result. `dense` hands PyTorch's attention the mask of the whole tree.
`runs` cuts the tree, in depth-first order, into runs of segments, and computes each run against the
keys above it and its own under a mask: long branches do not meet each other, and the short ones that
hang together (a probe, a reply's last words) share a call. `flex` hands the mask to FlexAttention as
blocks, compiled on a GPU: uncompiled it computes all scores of the whole tree. `auto` takes `runs` on
a CPU, and on a GPU, which would wait for the kernels of each run, `dense` up to 2,048 tokens and
`flex` above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rl.tree import TokenTree

NAME = "tree"
Way = Literal["auto", "dense", "runs", "flex"]
Ids = npt.NDArray[np.int64]
_DENSE = 2048
# What a call costs a CPU beside its products of a query and a key, and what each of its keys does (it is
# copied, and few queries leave vector units idle), in such products: measured with 9 heads of 64.
_PER_RUN, _PER_KEY = 5500, 8
_WIDEST = 64  # segments of a run


@dataclass(frozen=True)
class Above:
    """What trees begin with, computed once for all of them.

    Attributes:
        count: its tokens.
        layers: keys and values by number of the layer, float[1, key heads, count, d] each.
    """

    count: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """Queries that are computed in one call.

    Attributes:
        keys: numbers of the pieces that hold their keys: those above, root first, then their own.
        mask: float[queries, keys], 0 where seen and minus infinity elsewhere; None for a segment with
            nothing above it. The keys of what is above the whole tree come first.
    """

    keys: tuple[int, ...]
    mask: torch.Tensor | None


@dataclass(frozen=True)
class _Plan:
    """What attention needs of a tree, made once for all layers: runs, or a mask, or blocks.

    Attributes:
        runs: cover the rows in order.
        lengths: rows of each run.
        pieces: lengths of what the keys are split into.
        mask: bool[n, keys], true where seen.
        block_mask: FlexAttention's.
        above: what comes before the tree.
        kept: where the tree's own keys and values are to be put.
    """

    runs: tuple[_Run, ...] = ()
    lengths: tuple[int, ...] = ()
    pieces: tuple[int, ...] = ()
    mask: torch.Tensor | None = None
    block_mask: Any = None
    above: Above | None = None
    kept: Above | None = None


_plan: ContextVar[_Plan] = ContextVar("plan")


@contextmanager
def on_tree(
    tree: TokenTree, device: torch.device, way: Way = "auto", above: Above | None = None
) -> Iterator[None]:
    """Attention within follows this tree, behind what is above it, whose tokens it does not hold."""
    with _following(replace(_planned(tree, device, way, above.count if above else 0), above=above)):
        yield


@contextmanager
def keeping(tree: TokenTree, device: torch.device, way: Way = "auto") -> Iterator[Above]:
    """Attention within follows this tree, of a single segment; its keys and values are kept."""
    kept = Above(len(tree))
    with _following(replace(_planned(tree, device, way, 0), kept=kept)):
        yield kept


@contextmanager
def _following(plan: _Plan) -> Iterator[None]:
    token = _plan.set(plan)
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
    if plan.kept is not None:
        plan.kept.layers[_layer(module)] = (key, value)
    before = () if plan.above is None else plan.above.layers[_layer(module)]
    if before and not plan.runs:
        key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
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
    # Split once and joined anew for each run: the gradient then flows through pieces of rows, where
    # picking rows one by one would cost a tensor as large as the tree for every run.
    queries = torch.split(query, list(plan.lengths), 2)
    keys, values = (torch.split(part, list(plan.pieces), 2) for part in (key, value))
    first = [[part] for part in before] or [[], []]
    parts = [
        scaled_dot_product_attention(
            own,
            torch.cat([*first[0], *(keys[number] for number in run.keys)], dim=2),
            torch.cat([*first[1], *(values[number] for number in run.keys)], dim=2),
            attn_mask=None if run.mask is None else run.mask.to(query.dtype),
            is_causal=run.mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=True,
        )
        for run, own in zip(plan.runs, queries, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _layer(module: torch.nn.Module) -> int:
    number: Any = module.layer_idx
    return int(number)


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


def _planned(tree: TokenTree, device: torch.device, way: Way, above: int) -> _Plan:
    """The plan of a tree behind so many tokens."""
    way = _chosen(tree, device) if way == "auto" else way
    if way == "flex":
        return _Plan(block_mask=_blocks(tree, device, above))
    if way == "dense":
        rows = np.arange(len(tree))
        return _Plan(mask=torch.from_numpy(_seen(_ends(tree), rows, rows, above)).to(device))
    return _runs(tree, device, above)


def _chosen(tree: TokenTree, device: torch.device) -> Way:
    """A GPU waits for each run's kernels."""
    if device.type == "cpu":
        return "runs"
    return "dense" if len(tree) <= _DENSE or device.type != "cuda" else "flex"


def _runs(tree: TokenTree, device: torch.device, above: int) -> _Plan:
    cut = _cut(tree)
    spans = [(int(tree.starts[first]), int(tree.starts[last])) for first, last in cut]
    ancestors = [_ancestors(tree, first) for first, _ in cut]
    edges = sorted({edge for some in (spans, *ancestors) for one in some for edge in one})
    number = {edge: place for place, edge in enumerate(edges)}
    ends = _ends(tree)
    runs = []
    for span, ranges, (first, last) in zip(spans, ancestors, cut, strict=True):
        held = (*ranges, span)
        mask = None
        if above or ranges or last - first > 1:
            columns = np.concatenate([np.arange(*one) for one in held])
            hidden = torch.from_numpy(~_seen(ends, np.arange(*span), columns, above)).to(device)
            mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        keys = tuple(n for start, stop in held for n in range(number[start], number[stop]))
        runs.append(_Run(keys, mask))
    return _Plan(tuple(runs), tuple(b - a for a, b in spans), tuple(np.diff(edges).tolist()))


def _cut(tree: TokenTree) -> list[tuple[int, int]]:
    """First and behind-last segment of each run, chosen so that all calls together cost least.

    All that is above any segment of a run and not in it is above its first segment, as rows are in
    depth-first order.
    """
    count = len(tree.parents)
    depths = tree.positions[tree.starts[:-1]]
    best, origin = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=np.int64)
    best[0] = 0.0
    for first in range(count):
        stops = np.arange(first + 1, min(first + _WIDEST, count) + 1)
        queries = tree.starts[stops] - tree.starts[first]
        keys = depths[first] + queries
        costs = best[first] + queries * keys + _PER_KEY * keys + _PER_RUN
        less = costs < best[stops]
        best[stops[less]], origin[stops[less]] = costs[less], first
    cut = []
    while count:
        cut.append((int(origin[count]), count))
        count = int(origin[count])
    return cut[::-1]


def _ancestors(tree: TokenTree, segment: int) -> list[tuple[int, int]]:
    """The rows of a segment's ancestors as ranges, root first; neighbours are joined."""
    found: list[tuple[int, int]] = []
    at = int(tree.parents[segment])
    while at >= 0:
        start, stop = int(tree.starts[at]), int(tree.starts[at + 1])
        found.append((start, found.pop()[1] if found and found[-1][0] == stop else stop))
        at = int(tree.parents[at])
    return found[::-1]


def _seen(ends: Ids, rows: Ids, columns: Ids, above: int) -> npt.NDArray[np.bool_]:
    """bool[rows, above + columns]: whether a row's token sees a column's; all see what is above."""
    seen = (columns[None, :] <= rows[:, None]) & (rows[:, None] < ends[columns][None, :])
    return np.pad(seen, ((0, 0), (above, 0)), constant_values=True)


def _ends(tree: TokenTree) -> Ids:
    """int64[n]: behind which row the tokens end that see each token. In depth-first order the
    descendants of a segment follow it without a gap: j is seen from i when j <= i < ends[j]."""
    last = tree.starts[1:].copy()
    for number in range(len(tree.parents) - 1, -1, -1):
        parent = int(tree.parents[number])
        if parent >= 0:
            last[parent] = max(last[parent], last[number])
    return np.repeat(last, np.diff(tree.starts))


def _blocks(tree: TokenTree, device: torch.device, above: int) -> Any:
    """FlexAttention's block mask of the same."""
    ends = torch.from_numpy(_ends(tree)).to(device)

    def seen(batch: Any, head: Any, row: Any, column: Any) -> Any:
        own = column - above
        return (own < 0) | ((own <= row) & (row < ends[own.clamp(min=0)]))

    found = _flex(device.type).blocks
    return found(seen, None, None, len(tree), above + len(tree), device=str(device))
