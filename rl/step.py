"""One optimizer step over token trees, for whatever is trained on them: a policy, or a critic.

Every process makes the same number of passes. A step whose loss or gradient is no number changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kg.errors import TurnwiseError
from rl import ranks
from rl.batches import TreeBatch
from rl.losses import LossOutput


class UnequalPassesError(TurnwiseError):
    """The processes of a run would make different numbers of passes, which ZeRO 3 never survives."""


@dataclass(frozen=True)
class UpdateStats:
    """One optimizer step, of all processes together.

    Attributes:
        loss: of the whole step; NaN when the step was skipped.
        applied: whether the weights changed; not when a loss or the gradient was no number.
        figures: means of what the loss tells, by name, over loss tokens unless it says otherwise, and
            `grad_norm`, `lr`, `computed` (tokens of the trees), `shared` (tokens of all calls one by one
            over those of the trees), `passes`; of a policy also `tokens` (loss tokens) and `silent`
            (trees left out).
        broken: trees of this process whose loss was no number; all of them where the gradient alone was
            none.
    """

    loss: float
    applied: bool
    figures: dict[str, float]
    broken: tuple[TreeBatch, ...] = ()


def take_step(
    engine: Any, trees: Sequence[TreeBatch], loss: Callable[[TreeBatch], LossOutput]
) -> UpdateStats:
    """Passes over trees, then one step of the optimizer.

    Args:
        engine: of DeepSpeed.
        trees: of all processes; each takes its share.
        loss: a tree's part of the step's loss, with gradient, and means over its loss tokens.

    Raises:
        UnequalPassesError: the processes were given different batches.
    """
    mine, tally = _share(trees), _Tally()
    world = torch.distributed.get_world_size()
    for index, (item, counts) in enumerate(mine):
        engine.set_gradient_accumulation_boundary(index == len(mine) - 1)
        found = loss(item)
        if counts:
            tally.add(item, found)
        with _repeatable(engine.device):
            engine.backward(found.value * (world if counts else 0))
        if index < len(mine) - 1:
            engine.step()
    return _finish(engine, trees, tuple(item for item, counts in mine if counts), tally)


def _finish(
    engine: Any, trees: Sequence[TreeBatch], mine: tuple[TreeBatch, ...], tally: _Tally
) -> UpdateStats:
    """Change the weights, unless a loss or the gradient was no number."""
    device = engine.device
    figures = tally.figures(device)
    loss, kept = ranks.total(tally.loss, device), tuple(tally.broken)
    blamed = broken = ranks.anybody(bool(kept), device)
    rate, norm = float(engine.get_lr()[0]), 0.0
    if trees:
        norm, broken = change(engine, blamed)
    if broken and not blamed:  # nothing tells which tree the gradient is of
        kept = mine
    computed = sum(len(tree.tree) for tree in trees)
    figures |= {
        "grad_norm": math.nan if broken else norm,
        "lr": rate,
        "computed": float(computed),
        "shared": sum(t.tree.sequence_tokens for t in trees) / max(1, computed),
        "passes": float(len(trees)),
    }
    applied = bool(trees) and not broken
    return UpdateStats(math.nan if broken else loss, applied, figures, kept)


def change(engine: Any, broken: bool) -> tuple[float, bool]:
    """The optimizer's step, which changes nothing where the loss or the gradient is no number.

    Args:
        engine: of DeepSpeed, behind its last backward pass of the step.
        broken: whether the loss is no number, in every process alike.

    Returns:
        The gradient's norm before clipping, and whether nothing changed.
    """
    norm = _plain_norm(engine)
    broken = broken or ranks.anybody(not math.isfinite(norm or 0.0), engine.device)
    before = engine.skipped_steps
    with _muted(engine, broken):
        engine.step()
    if norm is None:  # ZeRO drops a gradient that is no number by itself
        norm = float(engine.get_global_grad_norm() or 0.0)
        broken = broken or engine.skipped_steps > before or not math.isfinite(norm)
    return norm, broken


def _share(trees: Sequence[TreeBatch]) -> list[tuple[TreeBatch, bool]]:
    """This process's trees, and passes that count for nothing up to the other processes' number."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    counts = ranks.gathered((len(trees), sum(map(len, trees))))
    if len(set(counts)) > 1:
        raise UnequalPassesError(f"the processes hold different batches: {counts}")
    mine = [(tree, True) for tree in trees[rank::world]]
    missing = math.ceil(len(trees) / world) - len(mine)
    return mine + [(tree, False) for tree in list(trees[:1]) * missing]


class _Tally:
    """Figures of the passes of a step: means weighted by what they are over, maxima, minima."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.broken: list[TreeBatch] = []
        self._weights: dict[str, int] = {}
        self._sums: dict[str, float] = {}
        self._tops: dict[str, float] = {}

    def add(self, item: TreeBatch, found: LossOutput) -> None:
        value = float(found.value.detach())
        if not math.isfinite(value):
            self.broken.append(item)
            return
        self.loss += value
        for name, tensor in found.diagnostics.items():
            one = float(tensor)
            if name.endswith("_max"):
                self._tops[name] = max(one, self._tops.get(name, one))
            elif name.endswith("_min"):
                self._tops[name] = min(one, self._tops.get(name, one))
            elif name not in ("tokens", "sequences"):
                weight = found.counts.get(name, len(item))
                self._weights[name] = self._weights.get(name, 0) + weight
                self._sums[name] = self._sums.get(name, 0.0) + one * weight

    def figures(self, device: torch.device) -> dict[str, float]:
        """Of all processes."""
        every = ranks.gathered((self._weights, self._sums, self._tops))
        out: dict[str, float] = {}
        for name in sorted({name for _, sums, _ in every for name in sums}):
            over = max(1, sum(weights.get(name, 0) for weights, _, _ in every))
            out[name] = sum(sums.get(name, 0.0) for _, sums, _ in every) / over
        for name in sorted({name for _, _, tops in every for name in tops}):
            found = [tops[name] for _, _, tops in every if name in tops]
            out[name] = min(found) if name.endswith("_min") else max(found)
        return out


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Within, sums on a CPU are taken in one order.

    The gradient of a gathered row is otherwise added up by whichever thread comes first, and a run that
    is repeated drifts in the last bits.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = fill


def _plain_norm(engine: Any) -> float | None:
    """Norm of the gradients before clipping; None where DeepSpeed keeps them and tells it later."""
    if engine.zero_optimization() or engine.bfloat16_enabled():
        return None
    found = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(found))


@contextmanager
def _muted(engine: Any, on: bool) -> Iterator[None]:
    """Within, a step of the engine clears gradients and changes nothing: DeepSpeed has no way of its own
    to drop what was accumulated that works with every ZeRO stage."""
    if not on:
        yield
        return
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    before = inner.step
    inner.step = lambda *_, **__: None
    try:
        yield
    finally:
        inner.step = before
