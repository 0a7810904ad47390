"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_EVERY = 15.0


class Advance(Protocol):
    """Takes how far a stage is; see `bar`."""

    def __call__(self, stage: str, done: int, total: int, spent: str = "") -> None:
        """Tell that `done` of `total` are done, and in words what they cost so far."""


@contextmanager
def bar(lines: bool = False) -> Iterator[Advance]:
    """Gives `advance(stage, done, total, spent="")`; a total of 0 is unknown. Shows a rate, an end time
    and what was spent.

    Args:
        lines: without a terminal, write a line every 15 seconds instead of nothing.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines() if lines else lambda stage, done, total, spent="": None
        return
    with _progress(console) as progress:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int, spent: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None, rate="", spent="")
            task = progress.tasks[list(tasks).index(stage)]
            rate = _rate(task.speed) if task.speed else ""
            progress.update(
                tasks[stage], completed=done, total=total or None, rate=rate, spent=spent
            )

        yield advance


def _progress(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
        console=console,
    )


def _lines() -> Advance:
    began: dict[str, tuple[float, int]] = {}
    last = [0.0]

    def advance(stage: str, done: int, total: int, spent: str = "") -> None:
        now = time.monotonic()
        start, first = began.setdefault(stage, (now, done))
        if now - last[0] < _EVERY and done != total:
            return
        last[0] = now
        speed = (done - first) / (now - start) if now > start else 0.0
        left = f", {(total - done) / speed:,.0f} s to go" if speed and done < total else ""
        parts = f"{done}/{total or '?'}  {_rate(speed)}{left}{f', {spent}' if spent else ''}"
        print(f"{stage}: {parts}", file=sys.stderr, flush=True)

    return advance


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"
