"""The learner: a policy's weights under DeepSpeed, updated by batches of token trees.

Works the same on one CPU process and on several GPUs: ZeRO stages 0 to 3, all weights or LoRA. Every
process makes the same number of passes. Knows nothing of rewards, rollouts and engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.policies.chat import ChatTemplate
from rl import losses, ranks
from rl.assessment_recipe import LossChoice
from rl.batches import Floats, Ids, TreeBatch, UpdateBatch
from rl.engine import load_trainable, start_engine
from rl.scoring import Scorer, positions
from rl.step import UpdateStats, take_step
from rl.train_recipe import Update
from rl.tree import TokenTree
from rl.tree_attention import on_tree
from rl.tree_pass import beginning_of, tree_logprobs


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
            folder, update.lora, dtype, attention="tree", checkpointing=update.checkpointing
        )
        self._frozen = None
        if loss.anchor is not None and update.lora is None:
            self._frozen = load_trainable(folder, None, dtype, attention="tree").eval()
            self._frozen.requires_grad_(False)
        self.engine = start_engine(
            model, update.optimizer, steps, dtype, update.zero, update.offload
        )
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
        with self._anchored(anchor) as module:
            found = tree_logprobs(module, tree, rows, self.engine.device)
        self.engine.train()
        return found

    def many(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Floats]:
        """`logprobs` of several trees, each with rows; what all begin with is computed once.

        Every process must ask for the same; each computes its share.
        """
        self.engine.eval()
        device = self.engine.device
        above = beginning_of(self.engine, trees, device)
        found = ranks.dealt(
            trees, lambda one: tree_logprobs(self.engine, *one, device, above=above)
        )
        self.engine.train()
        return found

    def scored(self, trees: Sequence[TreeBatch], *, anchor: bool = False) -> list[Floats]:
        """For each tree float32[k], the log-probabilities of its loss tokens. Every process must ask for
        the same trees; each computes its share."""
        return ranks.dealt(trees, lambda item: self._scored(item, anchor))

    def _scored(self, item: TreeBatch, anchor: bool) -> Floats:
        return self.logprobs(item.tree, item.rows, anchor=anchor)[item.place]

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
        stats = take_step(
            self.engine,
            live,
            lambda item: self._pass(item, batch, None if old is None else old[id(item)]),
        )
        silent = float(len(batch.trees) - len(live))
        return replace(
            stats, figures=stats.figures | {"tokens": float(batch.tokens), "silent": silent}
        )

    def _pass(self, item: TreeBatch, batch: UpdateBatch, old: Floats | None) -> losses.LossOutput:
        """The loss of one tree, as its part of the whole step."""
        device = self.engine.device
        wants = self._update.entropy or self._loss.entropy > 0
        anchor = None
        if self._loss.anchor is not None and self._loss.anchor.into == "loss":
            anchor = torch.from_numpy(self._scored(item, anchor=True)).to(device)
        with on_tree(item.tree, device):
            found = self.engine(*self._inputs(item.tree, item.rows), entropy=wants)
        place = torch.from_numpy(item.place).to(device)
        logprobs, entropy = (found[0], found[1]) if wants else (found, None)
        right = None
        if item.right is not None:
            right = logprobs[torch.from_numpy(item.right.place).to(device)]
        return tree_loss(
            self._loss,
            item,
            batch,
            logprobs[place],
            old=None if old is None else torch.from_numpy(old).to(device),
            anchor=anchor,
            entropy=None if entropy is None else entropy[place],
            right=right,
        )

    def _speaks(self, tree: TreeBatch) -> bool:
        """Whether a gradient can come from a tree."""
        loss = self._loss
        held = loss.anchor is not None and loss.anchor.into == "loss"
        told = loss.likelihood > 0 and tree.right is not None
        return held or told or not tree.silent or loss.entropy > 0

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
    """The learner's own weights as a scorer. Every process must score the same trees; where several are
    scored together, each process computes its share."""

    def __init__(self, learner: Learner) -> None:
        self.policy = ""
        self.template = learner.template
        self.context_length = positions(learner.engine.module.model)
        self._learner = learner

    def logprobs(self, tree: TokenTree, rows: Ids) -> Floats:
        """See `Scorer.logprobs`."""
        if not len(rows):
            return np.zeros(0, dtype=np.float32)
        return self._learner.logprobs(tree, rows)

    def many(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Floats]:
        """See `Scorer.many`."""
        found = iter(self._learner.many([one for one in trees if len(one[1])]))
        return [next(found) if len(rows) else self.logprobs(tree, rows) for tree, rows in trees]


def tree_loss(
    choice: LossChoice,
    item: TreeBatch,
    batch: UpdateBatch,
    logprobs: torch.Tensor,
    old: torch.Tensor | None = None,
    anchor: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
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
        right: float[j], with gradient, of the tree's right replies.

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
        found = losses.gspo(tokens, low=choice.low, high=choice.high, reduction=reduction)
    else:
        found = losses.ppo_clip(
            tokens, low=choice.low, high=choice.high, dual=choice.dual, reduction=reduction
        )
    value, figures = found.value, found.diagnostics | _gap(before, behaviour, weights)
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
    found = losses.LossOutput(value, figures)
    return found if right is None else _with_replies(found, choice, item, batch, right)


def _with_replies(
    found: losses.LossOutput,
    choice: LossChoice,
    item: TreeBatch,
    batch: UpdateBatch,
    right: torch.Tensor,
) -> losses.LossOutput:
    """The loss with the term of a tree's right replies; see `rl.imitation`."""
    if item.right is None or not choice.likelihood:
        return found
    told = (torch.from_numpy(item.right.shares).to(right.device) * right).sum()
    count = item.right.count
    return losses.LossOutput(
        found.value - choice.likelihood * told / batch.replies,
        found.diagnostics | {"right_reply": told.detach() / count},
        {"right_reply": count},
    )


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
