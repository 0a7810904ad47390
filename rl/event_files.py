"""Event files for TensorBoard, where the package `tensorboard` is installed (extra `train`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl.step_metrics import Metrics, Validated


class EventFiles:
    """Writes a run's numbers; without the package it says so once and writes nothing.

    Args:
        folder: of the event files. A run that goes on hides what was written of later steps.
        notify: gets the line that there is no TensorBoard.
    """

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self._folder, self._notify = folder, notify
        self._writer: Any = None
        self._absent = False

    def step(self, metrics: Metrics) -> None:
        """Every metric of a step."""
        self._add(int(metrics["step"]), metrics)

    def validated(self, found: Validated) -> None:
        """A validation: shares right with their intervals, and behaviour."""
        right = found.right
        values = {"right": right.mean, "right_low": right.low, "right_high": right.high}
        values |= {f"right/{kind or '-'}": one.mean for kind, one in found.kinds.items()}
        values |= {"searches": found.searches, "turns": found.turns, "wrong": found.wrong}
        values |= {"declined": found.declined, "hallucinated": found.hallucinated}
        if found.misled is not None:
            again = found.misled.recovered
            values |= {
                "misled/right": found.misled.right.mean,
                "misled/lost": found.misled.lost.mean,
            }
            values |= {"misled/recovered": math.nan if again is None else again.mean}
        values |= {"errors": found.errors}
        if found.errors and found.without_errors is not None:
            values["right_without_errors"] = found.without_errors.mean
        self._add(found.step, {f"validation/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Put everything on disk."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, values: Metrics) -> None:
        writer = self._open(step)
        if writer is None:
            return
        for name, value in values.items():
            if name not in ("step", "steps") and math.isfinite(value):
                writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def _open(self, step: int) -> Any:
        """The writer; made at the first step, so that a refused run leaves no file."""
        if self._writer is None and not self._absent:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._absent = True
                self._notify("no TensorBoard files: pip install 'turnwise[train]'")
                return None
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer
