"""Cold start: supervised fine-tuning of a policy on demonstration trajectories.

Only tokens that the demonstrating policy sampled carry loss.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.trajectory import Trajectory
from kg.errors import UsageError
from rl import ranks
from rl.engine import load_trainable, whole
from rl.fit import FitReport, Progress, fit
from rl.model_files import convert, copy_tokenizer, note_base
from rl.packing import Row, rows
from rl.precision import settled
from rl.recipe import SftRecipe


def train(
    recipe: SftRecipe,
    base: Path,
    demonstrations: Iterable[Trajectory],
    run: Path,
    progress: Progress = lambda report: None,
) -> FitReport:
    """Fine-tune the model in `base`; the result lies in `run/adapter` or `run/model`.

    Args:
        recipe: what to do.
        base: model folder.
        demonstrations: trajectories with token ids of the base model's tokenizer.
        run: folder of the run; one with a save in it is resumed.
        progress: called after each optimizer step.

    Raises:
        UsageError: no trainable row, the folder belongs to another recipe, or a model whose sliding
            window is narrower than a pack or the longest row.
        TrainingError: the loss became not a number.
    """
    recipe = settled(recipe, run)
    train_rows, held = _rows(recipe, demonstrations)
    if not train_rows:
        raise UsageError("there is no demonstration to train on")
    dtype = getattr(torch, recipe.dtype)
    init = Path(recipe.init) if recipe.init else None
    longest = max(recipe.pack_tokens, *(len(row) for row in (*train_rows, *held)))
    return fit(
        recipe,
        lambda: load_trainable(base, recipe.lora, dtype, init, longest),
        train_rows,
        held,
        run,
        lambda engine: _export(engine, run, recipe, base),
        progress,
    )


def _rows(recipe: SftRecipe, demonstrations: Iterable[Trajectory]) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows; a task's rows are all on one side."""
    grouped: dict[str, list[Row]] = {}
    for trajectory in demonstrations:
        for row in rows(trajectory):
            grouped.setdefault(trajectory.task.id, []).append(row)
    keys = sorted(grouped)
    np.random.default_rng(recipe.seed).shuffle(keys)
    cut = round(recipe.holdout * len(keys))
    held = [row for key in keys[:cut] for row in grouped[key]]
    train_rows = [row for key in keys[cut:] for row in grouped[key]]
    return train_rows, held


def _export(engine: Any, run: Path, recipe: SftRecipe, folder: Path) -> Path:
    """Write the adapter, or the whole model, as transformers and peft read it."""
    model = engine.module.model
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = recipe.base  # a name, not a folder of this machine
    out = run / ("adapter" if hasattr(model, "peft_config") else "model")
    with whole(engine):
        if ranks.is_main():
            shutil.rmtree(out, ignore_errors=True)
            model.save_pretrained(str(out))
            if recipe.save_dtype not in (None, recipe.dtype):
                convert(out, getattr(torch, recipe.save_dtype))
            if out.name == "model":
                copy_tokenizer(folder, out)
            else:
                note_base(out, folder)
    return out
