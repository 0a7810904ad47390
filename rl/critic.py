"""The critic: predicts, before every sampled token, what the episode is still going to bring.

A model of its own under DeepSpeed, which starts as the policy's base with a head that predicts 0. It
reads the same token trees as the learner, so that what a group shares is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from agent.trajectory import Trajectory
from rl import ranks
from rl.batches import TreeBatch, minibatches
from rl.engine import load_critic, start_engine
from rl.losses import LossOutput
from rl.sampled import at_sampled
from rl.step import UpdateStats, take_step
from rl.train_recipe import CriticChoice, Update
from rl.tree import TokenTree
from rl.tree_attention import on_tree

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CriticStats:
    """What a batch taught the critic.

    Attributes:
        mse: mean squared error of the values that the batch's credit was computed with.
        explained_variance: share of the returns' variance that those values explain; at most 1, below 0
            for values that are worse than a constant, NaN where the returns do not vary.
        updates: one an optimizer step; the loss is half the mean squared error.
    """

    mse: float
    explained_variance: float
    updates: tuple[UpdateStats, ...]


class Critic:
    """Values that are learnt from returns.

    Args:
        folder: model to start from.
        choice: how it is trained.
        update: of the policy; its type, ZeRO stage, trees and checkpointing are the critic's too.
        batches: of the whole run, for the learning rate.

    Raises:
        PolicyUnavailableError: the folder does not hold a model.
        UsageError: a model that cannot be trained here.
        MissingExtraError: DeepSpeed is not installed.
    """

    def __init__(self, folder: Path, choice: CriticChoice, update: Update, batches: int) -> None:
        self._choice, self._most = choice, update.tree_tokens
        dtype = getattr(torch, update.dtype)
        ranks.join()
        model = load_critic(folder, choice.lora, dtype, update.checkpointing)
        steps = batches * choice.epochs * choice.minibatches
        self.engine = start_engine(
            model, choice.optimizer, steps, dtype, update.zero, update.offload
        )

    def values(self, groups: Sequence[Sequence[Trajectory]]) -> list[Floats]:
        """For each trajectory, groups end to end, float64[its tokens]: the predicted return before each
        sampled token, given what the policy saw; 0 elsewhere. Every process must ask for the same.

        Args:
            groups: of trajectories with tokens.
        """
        return at_sampled(groups, self._most, self._of_rows)

    def fit(
        self,
        trees: Sequence[TreeBatch],
        values: Sequence[Floats],
        targets: Sequence[Floats],
        seed: Sequence[int],
    ) -> CriticStats:
        """Train on the returns of a batch.

        Args:
            trees: of the batch, those without advantages too: see `rl.batches.lay_out`.
            values: per trajectory of the batch float64[its tokens], what `values` gave.
            targets: per trajectory of the batch float64[its tokens], NaN where nothing is to be learnt;
                see `rl.credit.Credit.targets`.
            seed: of the order of minibatches.
        """
        wanted = {id(tree): _of_tree(tree, targets) for tree in trees}
        live = [tree for tree in trees if np.isfinite(wanted[id(tree)]).any()]
        before = {id(tree): _of_tree(tree, values) for tree in live}
        updates = []
        for epoch in range(self._choice.epochs):
            order = np.random.default_rng([*seed, epoch]).permutation(len(live)).tolist()
            for batch in minibatches(live, self._choice.minibatches, order):
                count = sum(int(np.isfinite(wanted[id(tree)]).sum()) for tree in batch.trees)
                updates.append(
                    take_step(
                        self.engine,
                        batch.trees,
                        lambda tree, n=count: self._pass(  # type: ignore[misc]
                            tree, wanted[id(tree)], before[id(tree)], n
                        ),
                    )
                )
        pairs = [(wanted[id(tree)], before[id(tree)]) for tree in live]
        return CriticStats(*_errors(pairs), tuple(updates))

    def _pass(self, tree: TreeBatch, wanted: Floats, before: Floats, count: int) -> LossOutput:
        """A tree's part of half the mean squared error over `count` tokens."""
        device = self.engine.device
        with on_tree(tree.tree, device):
            found = self.engine(*self._inputs(tree.tree, tree.rows))
        chosen = np.flatnonzero(np.isfinite(wanted))
        place = torch.from_numpy(tree.place[chosen]).to(device)
        target = torch.from_numpy(wanted[chosen].astype(np.float32)).to(device)
        error = (found[place] - target).square()
        if (clip := self._choice.value_clip) is not None:
            old = torch.from_numpy(before[chosen].astype(np.float32)).to(device)
            held = old + (found[place] - old).clamp(-clip, clip)
            error = torch.maximum(error, (held - target).square())
        return LossOutput(0.5 * error.sum() / count, {})

    def _of_rows(self, tree: TokenTree, rows: Rows) -> Floats:
        """float64[m]: the value before each token; no gradient."""
        self.engine.eval()
        with torch.no_grad(), on_tree(tree, self.engine.device):
            found = self.engine(*self._inputs(tree, rows))
        self.engine.train()
        return np.asarray(found.cpu().numpy(), dtype=np.float64)

    def _inputs(self, tree: TokenTree, rows: Rows) -> list[torch.Tensor]:
        inputs = (tree.ids, tree.positions, tree.predictors()[rows])
        return [torch.from_numpy(one).to(self.engine.device) for one in inputs]


def _of_tree(tree: TreeBatch, given: Sequence[Floats]) -> Floats:
    """float64[k]: per-trajectory numbers at a tree's loss tokens, in their order."""
    return np.concatenate([np.zeros(0), *(given[number][at] for number, at in tree.where)])


def _errors(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Mean squared error of values, and the share of the returns' variance that they explain: NaN where
    the returns do not vary."""
    wanted, before = (np.concatenate([np.zeros(0), *(pair[i] for pair in pairs)]) for i in (0, 1))
    chosen = np.isfinite(wanted)
    if not chosen.any():
        return math.nan, math.nan
    error, spread = wanted[chosen] - before[chosen], float(wanted[chosen].var())
    return float((error**2).mean()), 1 - float(error.var()) / spread if spread else math.nan
