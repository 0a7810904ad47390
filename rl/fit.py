"""Fitting a model to rows of tokens: the loop behind pre-training and fine-tuning.

Loss is the mean negative log-likelihood of target tokens over an optimizer step. A run lives in one
folder; it can be interrupted at any moment and goes on from its last save, with the same packs in the
same order. Knows nothing of where rows come from and where the result goes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kg.errors import TurnwiseError, UsageError
from rl import ranks, run_folder
from rl.attention import row_lengths
from rl.checkpoint import Checkpoint
from rl.engine import TargetLogprobs, start_engine
from rl.interrupt import graceful
from rl.packing import Pack, Row, pack
from rl.recipe import Fit
from rl.stamp import Stamp
from rl.step import change


class TrainingError(TurnwiseError):
    """Training cannot go on: the loss is not a number, say."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, for progress and for `metrics.jsonl`.

    Attributes:
        loss: nats a sampled token, of this step's batch before the step.
        tokens: tokens of the batch; `targets` of them carry loss.
        tokens_per_second: of this step.
        seconds: since this process began training.
        eta: seconds to the end, by the mean rate so far.
    """

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    targets: int
    tokens_per_second: float
    seconds: float
    eta: float


@dataclass(frozen=True)
class FitReport:
    """What a run leaves.

    Attributes:
        out: folder of the result.
        steps: optimizer steps done.
        holdout_before, holdout_after: nats a token on held-out rows; NaN without any.
        seconds: of training, in this process.
        finished: whether all steps were done.
        interrupted: whether Ctrl-C ended it; the same command goes on.
    """

    out: Path
    steps: int
    holdout_before: float
    holdout_after: float
    seconds: float
    finished: bool
    interrupted: bool


Progress = Callable[[StepReport], None]


def fit(
    recipe: Fit,
    model: Callable[[], TargetLogprobs],
    train_rows: Sequence[Row],
    held: Sequence[Row],
    run: Path,
    export: Callable[[Any], Path],
    progress: Progress = lambda report: None,
) -> FitReport:
    """Fit a model to rows; a run that was interrupted goes on from its last save.

    Args:
        recipe: how; written into the run's folder, which refuses another one.
        model: makes the model, after the seed is set.
        train_rows: rows to train on.
        held: rows to measure the loss on, before and after.
        run: folder of the run.
        export: writes the fitted engine's model; gives where.
        progress: called after each optimizer step.

    Raises:
        UsageError: no trainable row, or the folder belongs to another recipe or other rows, or another
            process trains in it.
        TrainingError: the loss or its gradient became not a number; the last save stays.
        CheckpointError: two saves in a row failed, or the last one cannot be read.
    """
    if not train_rows:
        raise UsageError("there is nothing to train on")
    ranks.join()
    with run_folder.held(run) if ranks.is_main() else nullcontext():
        return _fit(recipe, model, train_rows, held, run, export, progress)


def _fit(
    recipe: Fit,
    model: Callable[[], TargetLogprobs],
    train_rows: Sequence[Row],
    held: Sequence[Row],
    run: Path,
    export: Callable[[Any], Path],
    progress: Progress,
) -> FitReport:
    ranks.main_first(lambda: run_folder.claim(run, recipe, recipe.free))
    ranks.main_first(lambda: run_folder.claim_rows(run, train_rows, held))
    torch.manual_seed(recipe.seed)
    steps = list(_steps(recipe, train_rows))
    dtype = getattr(torch, recipe.dtype)
    engine = start_engine(model(), recipe.optimizer, len(steps), dtype, recipe.zero)
    holdout = pack(held, recipe.pack_tokens)
    checkpoint = Checkpoint(run, 1, Stamp.of(recipe, recipe.free))
    state = checkpoint.load(engine)
    start, before = int(state.get("step", 0)), float(state.get("before", math.nan))
    if start == 0:
        before = evaluate(engine, holdout)
    began = time.monotonic()
    save = partial(_save, checkpoint, engine, before)
    done, interrupted = _loop(engine, recipe, steps, start, run, save, progress)
    after = evaluate(engine, holdout)
    out = export(engine)
    seconds, finished = time.monotonic() - began, done == len(steps)
    report = FitReport(out, done, before, after, seconds, finished, interrupted and not finished)
    facts = {**asdict(report), "out": out.name, "recipe": recipe.digest}
    run_folder.write(run / "report.json", facts)
    return report


def _loop(
    engine: Any,
    recipe: Fit,
    steps: Sequence[Sequence[Pack]],
    start: int,
    run: Path,
    save: Callable[[int], None],
    progress: Progress,
) -> tuple[int, bool]:
    """Train from step `start`; gives the number of steps done, and whether Ctrl-C ended it."""
    began = time.monotonic()
    with graceful() as interrupted, run_folder.metrics(run, start) as metrics:
        for number in range(start, len(steps)):
            report = _step(engine, steps[number], number + 1, len(steps), began, start)
            metrics.add(asdict(report))
            if ranks.is_main():
                progress(report)
            late = 0 < recipe.max_seconds <= report.seconds
            stopped = ranks.anybody(interrupted(), engine.device)
            last = ranks.anybody(late, engine.device) or stopped or number + 1 == len(steps)
            if last or (number + 1) % recipe.save_every == 0:
                save(number + 1)
            if last:
                return number + 1, stopped
    return start, False


def _step(
    engine: Any, packs: Sequence[Pack], number: int, of: int, began: float, start: int
) -> StepReport:
    """One optimizer step over packs; every rank makes the same number of passes."""
    total = sum(int(p.target.sum()) for p in packs)
    loss, lr, step_began = 0.0, float(engine.get_lr()[0]), time.monotonic()
    mine = _share(packs)
    for index, (item, weight) in enumerate(mine):
        engine.set_gradient_accumulation_boundary(index == len(mine) - 1)
        negative = -logprobs(engine, item).sum() * weight
        engine.backward(negative * torch.distributed.get_world_size() / total)
        loss += float(negative.detach())
        if index < len(mine) - 1:
            engine.step()
    loss = ranks.total(loss, engine.device) / total
    norm, broken = change(engine, not math.isfinite(loss))
    if broken:
        raise TrainingError(
            f"the loss is {loss} and its gradient's norm {norm} at step {number}; it changed nothing",
            "lower optimizer.lr; the run's last save is whole",
        )
    now = time.monotonic()
    seconds, tokens = now - began, sum(len(p.ids) for p in packs)
    return StepReport(
        step=number,
        steps=of,
        loss=loss,
        lr=lr,
        grad_norm=norm,
        tokens=tokens,
        targets=total,
        tokens_per_second=tokens / (now - step_began),
        seconds=seconds,
        eta=seconds / (number - start) * (of - number),
    )


def logprobs(engine: Any, item: Pack) -> torch.Tensor:
    """float32[m]: log-probabilities of a pack's target tokens, in their order."""
    device = engine.device
    targets = torch.from_numpy(np.flatnonzero(item.target)).to(device)
    with row_lengths(item.lengths):
        out: torch.Tensor = engine(
            torch.from_numpy(item.ids).to(device),
            torch.from_numpy(item.positions).to(device),
            targets,
        )
    return out


def evaluate(engine: Any, packs: Sequence[Pack]) -> float:
    """Mean negative log-likelihood (nats a token) over packs; NaN when there are none."""
    total = sum(int(p.target.sum()) for p in packs)
    if not total:
        return math.nan
    engine.eval()
    with torch.no_grad():
        loss = -sum(float(logprobs(engine, item).sum()) for item in packs)
    engine.train()
    return loss / total


def _steps(recipe: Fit, items: Sequence[Row]) -> Iterator[list[Pack]]:
    """Packs of each optimizer step, epoch by epoch, each in an order of its own."""
    per_step = max(1, round(recipe.batch_tokens / recipe.pack_tokens))
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(items))
        packs = pack([items[i] for i in order], recipe.pack_tokens)
        for first in range(0, len(packs), per_step):
            yield packs[first : first + per_step]


def _share(packs: Sequence[Pack]) -> list[tuple[Pack, float]]:
    """This rank's packs, each with weight 1, and weight-0 passes up to the other ranks' number."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = [(item, 1.0) for item in packs[rank::world]]
    missing = math.ceil(len(packs) / world) - len(mine)
    return mine + [(packs[0], 0.0)] * missing


def _save(checkpoint: Checkpoint, engine: Any, before: float, step: int) -> None:
    """Save weights, optimizer, position and the first held-out loss."""
    checkpoint.save(engine, step, {"before": before})
