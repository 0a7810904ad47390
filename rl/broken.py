"""Batches whose loss or gradient was no number, kept for inspection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rl import run_folder
from rl.batches import TreeBatch

FOLDER = "broken"


def keep(
    run: Path, step: int, whose: str, trees: Sequence[TreeBatch], targets: Any | None = None
) -> str:
    """Put the trees of this process into `broken/`, note the event, and give words for people.

    Args:
        run: the run's folder.
        step: that changed nothing.
        whose: loss: `policy` or `critic`.
        trees: that are to blame; none where another process has them all.
        targets: what the critic was to predict.
    """
    said = f"the {whose}'s loss or gradient is no number; it did not change"
    if trees:
        place = f"step-{step:05d}-{torch.distributed.get_rank()}-{whose}.pt"
        (run / FOLDER).mkdir(exist_ok=True)
        kept = {"trees": [asdict(tree) for tree in trees], "targets": targets}
        torch.save(kept, run / FOLDER / place)
        said += f"; see {FOLDER}/{place}"
    run_folder.note(run, step, "skipped", said)
    return f"step {step}: {said}"
