"""Forward passes over token trees, with what several trees begin with computed once.

The trees of a step have the system prompt in common. It is computed first, alone, and its keys and
values are kept: each tree is then computed behind them, as an engine does with a cached prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rl.tree import TokenTree, build_tree, shared_beginning
from rl.tree_attention import Above, Way, keeping, on_tree

Ids = npt.NDArray[np.int64]
Logprobs = npt.NDArray[np.float32]
#: `rl.engine.TargetLogprobs`: of targets, given ids, positions, targets and predictors.
Compute = Callable[..., Any]


def beginning_of(
    compute: Compute,
    trees: Sequence[tuple[TokenTree, Ids]],
    device: torch.device,
    way: Way = "auto",
) -> Above | None:
    """The keys and values of what all trees begin with; None where that is nothing, or of one tree.

    Args:
        compute: the model; it must not train.
        trees: each with the rows that will be read, at least one: what predicts these stays with a tree.
        device: of the model.
        way: how attention is computed.
    """
    if len(trees) < 2:
        return None
    count = min(
        shared_beginning([tree for tree, _ in trees]),
        *(int(tree.predictors()[rows].min()) for tree, rows in trees),
    )
    if count < 1:
        return None
    tree = build_tree([trees[0][0].ids[:count]])
    none = np.zeros(0, dtype=np.int64)
    with torch.no_grad(), keeping(tree, device, way) as above:
        compute(*_inputs(tree, none, device))
    return above


def tree_logprobs(
    compute: Compute,
    tree: TokenTree,
    rows: Ids,
    device: torch.device,
    way: Way = "auto",
    above: Above | None = None,
) -> Logprobs:
    """float32[m]: log p(token at a row | its ancestors) in nats; no gradient.

    Args:
        compute: the model; it must not train.
        tree: tokens.
        rows: int64[m], no first token of a root.
        device: of the model.
        way: how attention is computed.
        above: what the tree begins with, computed already; see `beginning_of`.
    """
    if above is not None:
        tree, rows = tree.behind(above.count), rows - above.count
    with torch.no_grad(), on_tree(tree, device, way, above):
        found = compute(*_inputs(tree, rows, device))
    return np.asarray(found.float().cpu().numpy(), dtype=np.float32)


def _inputs(tree: TokenTree, rows: Ids, device: torch.device) -> list[torch.Tensor]:
    parts = (tree.ids, tree.positions, rows, tree.predictors()[rows])
    return [torch.from_numpy(part).to(device) for part in parts]
