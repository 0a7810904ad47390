"""The learner: a policy's weights under DeepSpeed, updated by batches of token trees.

Works the same on one CPU process and on several GPUs: ZeRO stages 0 to 3, all weights or LoRA. Every
process makes the same number of passes. Knows nothing of rewards, rollouts and engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.policies.chat import ChatTemplate
from kg.errors import TurnwiseError
from rl import losses, ranks
from rl.batches import Floats, Ids, TreeBatch, UpdateBatch
from rl.engine import load_trainable, start_engine
from rl.scoring import Scorer
from rl.train_recipe import LossChoice, Update
from rl.tree import TokenTree
from rl.tree_attention import on_tree


class UnequalPassesError(TurnwiseError):
    """The processes of a run would make different numbers of passes, which ZeRO 3 never survives."""


@dataclass(frozen=True)
class UpdateStats:
    """One optimizer step, of all processes together.

    Attributes:
        loss: of the whole step; NaN when the step was skipped.
        applied: whether the weights changed; not when a loss was no number.
        figures: means over loss tokens by name, and `grad_norm`, `lr`, `gap_mean`, `gap_max` (nats,
            engine against learner), `tokens`, `computed` (tokens of the trees), `shared` (tokens of all
            calls one by one over those of the trees), `passes`, `silent`.
        broken: trees of this process whose loss was no number.
    """

    loss: float
    applied: bool
    figures: dict[str, float]
    broken: tuple[TreeBatch, ...] = ()


class Learner:
    """A policy that can be updated.

    Args:
        folder: of the model to start from; also the anchor, if the loss has one.
        update: how weights change.
        loss: the policy loss.
        steps: optimizer steps of the whole run, for the learning rate.

    Raises:
        PolicyUnavailableError: the folder does not hold a model.
        UsageError: a model that cannot be trained here.
        MissingExtraError: DeepSpeed is not installed.
    """

    def __init__(self, folder: Path, update: Update, loss: LossChoice, steps: int) -> None:
        self.folder = folder
        self.template = ChatTemplate.load(folder)
        self._update, self._loss = update, loss
        dtype = getattr(torch, update.dtype)
        ranks.join()
        model = load_trainable(
            folder, update.lora, dtype, None, 0, "tree", checkpointing=update.checkpointing
        )
        self._frozen = None
        if loss.anchor is not None and update.lora is None:
            self._frozen = load_trainable(folder, None, dtype, None, 0, "tree").eval()
            self._frozen.requires_grad_(False)
        self.engine = start_engine(model, update.optimizer, steps, dtype, update.zero)
        if self._frozen is not None:
            self._frozen.to(self.engine.device)

    def logprobs(self, tree: TokenTree, rows: Ids, *, anchor: bool = False) -> Floats:
        """float32[m]: log p(token at a row | its ancestors) in nats; no gradient.

        Args:
            tree: tokens.
            rows: int64[m], no first token of a root.
            anchor: under the weights that the run began with.
        """
        self.engine.eval()
        inputs = self._inputs(tree, rows)
        with torch.no_grad(), on_tree(tree, self.engine.device), self._anchored(anchor) as module:
            found = module(*inputs)
        self.engine.train()
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

    def scored(self, trees: Sequence[TreeBatch], *, anchor: bool = False) -> list[Floats]:
        """For each tree float32[k], the log-probabilities of its loss tokens."""
        found = [self.logprobs(item.tree, item.rows, anchor=anchor) for item in trees]
        return [values[item.place] for values, item in zip(found, trees, strict=True)]

    def step(self, batch: UpdateBatch, old: Mapping[int, Floats] | None = None) -> UpdateStats:
        """One optimizer step; trees that no gradient comes from are left out.

        Args:
            batch: the trees of all processes; each takes its share.
            old: id() of a tree to the log-probabilities that ratios are taken to; the current ones when
                None.

        Raises:
            UnequalPassesError: the processes were given different batches.
        """
        live = [tree for tree in batch.trees if self._speaks(tree)]
        mine = self._share(live)
        tally = _Tally()
        for index, (item, counts) in enumerate(mine):
            self.engine.set_gradient_accumulation_boundary(index == len(mine) - 1)
            found = self._pass(item, batch, None if old is None else old[id(item)])
            if counts:
                tally.add(item, found)
            world = torch.distributed.get_world_size()
            with _repeatable(self.engine.device):
                self.engine.backward(found.value * (world if counts else 0))
            if index < len(mine) - 1:
                self.engine.step()
        return self._finish(batch, live, tally)

    def _finish(self, batch: UpdateBatch, live: Sequence[TreeBatch], tally: _Tally) -> UpdateStats:
        """Change the weights, unless a loss was no number."""
        device = self.engine.device
        figures = tally.figures(device)
        loss = ranks.total(tally.loss, device)
        broken = ranks.anybody(bool(tally.broken), device)
        rate = float(self.engine.get_lr()[0])
        norm = _plain_norm(self.engine) if live else 0.0
        broken = broken or ranks.anybody(not math.isfinite(norm or 0.0), device)
        before = self.engine.skipped_steps
        if live:
            with _muted(self.engine, broken):
                self.engine.step()
        if norm is None:  # ZeRO drops a gradient that is no number by itself
            norm = float(self.engine.get_global_grad_norm() or 0.0)
            broken = broken or self.engine.skipped_steps > before or not math.isfinite(norm)
        computed = sum(len(tree.tree) for tree in live)
        figures |= {
            "grad_norm": math.nan if broken else norm,
            "lr": rate,
            "tokens": float(batch.tokens),
            "computed": float(computed),
            "shared": sum(t.tree.sequence_tokens for t in live) / max(1, computed),
            "passes": float(len(live)),
            "silent": float(len(batch.trees) - len(live)),
        }
        applied = bool(live) and not broken
        return UpdateStats(math.nan if broken else loss, applied, figures, tuple(tally.broken))

    def _pass(self, item: TreeBatch, batch: UpdateBatch, old: Floats | None) -> losses.LossOutput:
        """The loss of one tree, as its part of the whole step."""
        device = self.engine.device
        wants = self._update.entropy or self._loss.entropy > 0
        anchor = None
        if self._loss.anchor is not None and self._loss.anchor.into == "loss":
            [values] = self.scored([item], anchor=True)
            anchor = torch.from_numpy(values).to(device)
        with on_tree(item.tree, device):
            found = self.engine(*self._inputs(item.tree, item.rows), entropy=wants)
        place = torch.from_numpy(item.place).to(device)
        logprobs, entropy = (found[0], found[1]) if wants else (found, None)
        return tree_loss(
            self._loss,
            item,
            batch,
            logprobs[place],
            None if old is None else torch.from_numpy(old).to(device),
            anchor,
            None if entropy is None else entropy[place],
        )

    def _speaks(self, tree: TreeBatch) -> bool:
        """Whether a gradient can come from a tree."""
        loss = self._loss
        held = loss.anchor is not None and loss.anchor.into == "loss"
        return held or not tree.silent or loss.entropy > 0

    def _share(self, trees: Sequence[TreeBatch]) -> list[tuple[TreeBatch, bool]]:
        """This process's trees, and passes that count for nothing up to the other processes' number."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        counts = ranks.gathered((len(trees), sum(map(len, trees))))
        if len(set(counts)) > 1:
            raise UnequalPassesError(f"the processes hold different batches: {counts}")
        mine = [(tree, True) for tree in trees[rank::world]]
        missing = math.ceil(len(trees) / world) - len(mine)
        return mine + [(tree, False) for tree in list(trees[:1]) * missing]

    def _inputs(self, tree: TokenTree, rows: Ids) -> list[torch.Tensor]:
        parts = (tree.ids, tree.positions, rows, tree.predictors()[rows])
        return [torch.from_numpy(part).to(self.engine.device) for part in parts]

    @contextmanager
    def _anchored(self, anchor: bool) -> Iterator[Any]:
        """The module that computes: the engine, or the weights that the run began with."""
        if not anchor:
            yield self.engine
        elif self._frozen is not None:
            yield self._frozen
        else:
            with self.engine.module.model.disable_adapter():
                yield self.engine


class LearnerScorer(Scorer):
    """The learner's own weights as a scorer; every process must score the same trees."""

    def __init__(self, learner: Learner) -> None:
        self.policy = ""
        self.template = learner.template
        self._learner = learner

    def logprobs(self, tree: TokenTree, rows: Ids) -> Floats:
        """See `Scorer.logprobs`."""
        if not len(rows):
            return np.zeros(0, dtype=np.float32)
        return self._learner.logprobs(tree, rows)


def tree_loss(
    choice: LossChoice,
    item: TreeBatch,
    batch: UpdateBatch,
    logprobs: torch.Tensor,
    old: torch.Tensor | None = None,
    anchor: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
) -> losses.LossOutput:
    """A tree's part of the loss of a step; the parts add up to the whole.

    Args:
        choice: which loss.
        item: the tree.
        batch: the step that it is a part of.
        logprobs: float[k], with gradient.
        old: float[k] that ratios are taken to; `logprobs` themselves when None.
        anchor: float[k] under the anchor.
        entropy: float[k] of the predictions, nats.

    Returns:
        The loss and detached diagnostics, means over the tree's loss tokens.
    """
    device = logprobs.device
    before = logprobs.detach() if old is None else old
    behaviour = torch.from_numpy(item.behaviour).to(device)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    sequence = torch.from_numpy(item.sequence).to(device)
    weights = None
    if choice.correction is not None:
        weights = losses.importance_weights(
            before, behaviour, mask, sequence, **choice.correction.model_dump()
        )
    advantages = torch.from_numpy(item.advantages).to(device)
    tokens = losses.Tokens(logprobs, before, advantages, mask, sequence, weights)
    divisor = batch.divisor(choice.aggregation)
    reduction = losses.Reduction(choice.aggregation, choice.constant, divisor)
    if choice.kind == "gspo":
        value, figures = losses.gspo(tokens, low=choice.low, high=choice.high, reduction=reduction)
    else:
        value, figures = losses.ppo_clip(
            tokens, low=choice.low, high=choice.high, dual=choice.dual, reduction=reduction
        )
    figures |= _gap(before, behaviour, weights)
    if anchor is not None and choice.anchor is not None:
        held = losses.kl_loss(
            tokens,
            anchor,
            value=choice.anchor.value,
            gradient=choice.anchor.gradient,
            reduction=reduction,
        )
        value = value + choice.anchor.coefficient * held.value
        figures |= held.diagnostics
    if entropy is not None:
        figures["entropy"] = entropy.detach().mean()
        if choice.entropy:
            bonus = losses.aggregate(entropy, mask, sequence, reduction)
            value = value - choice.entropy * bonus
    return losses.LossOutput(value, figures)


def _gap(
    old: torch.Tensor, behaviour: torch.Tensor, weights: torch.Tensor | None
) -> losses.Diagnostics:
    """How far the engine's log-probabilities are from the learner's."""
    gap = torch.nan_to_num(old - behaviour, nan=0.0).abs()
    figures = {"gap_mean": gap.mean(), "gap_max": gap.max()}
    if weights is not None:
        figures["weight_mean"] = weights.mean()
        figures["weight_min"] = weights.min()
        figures["masked"] = (weights == 0).float().mean()
    return figures


class _Tally:
    """Figures of the passes of a step: means weighted by tokens, maxima, minima."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.broken: list[TreeBatch] = []
        self._tokens = 0
        self._sums: dict[str, float] = {}
        self._tops: dict[str, float] = {}

    def add(self, item: TreeBatch, found: losses.LossOutput) -> None:
        value = float(found.value.detach())
        if not math.isfinite(value):
            self.broken.append(item)
            return
        self.loss += value
        self._tokens += len(item)
        for name, tensor in found.diagnostics.items():
            one = float(tensor)
            if name.endswith("_max"):
                self._tops[name] = max(one, self._tops.get(name, one))
            elif name.endswith("_min"):
                self._tops[name] = min(one, self._tops.get(name, one))
            elif name not in ("tokens", "sequences"):
                self._sums[name] = self._sums.get(name, 0.0) + one * len(item)

    def figures(self, device: torch.device) -> dict[str, float]:
        """Of all processes."""
        mine = (self._tokens, self._sums, self._tops)
        every = ranks.gathered(mine)
        tokens = max(1, sum(count for count, _, _ in every))
        out: dict[str, float] = {}
        for name in sorted({name for _, sums, _ in every for name in sums}):
            out[name] = sum(sums.get(name, 0.0) for _, sums, _ in every) / tokens
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
