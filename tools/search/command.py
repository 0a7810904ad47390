"""What `agent index` runs: build, add and delete with progress, and a report of plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.search.build import BuildReport, add, build_index, delete
from tools.search.settings import IndexSettings

Notify = Callable[[str], None]


def build(paths: Sequence[Path], out: Path, embedder: str | None, notify: Notify) -> dict[str, Any]:
    """Build an index; see `tools.search.build.build_index`."""
    settings = IndexSettings(embedder=embedder) if embedder else IndexSettings()
    with _bar() as progress:
        return _facts(build_index(paths, out, settings, progress), notify)


def add_to(
    paths: Sequence[Path], out: Path, embedder: str | None, notify: Notify
) -> dict[str, Any]:
    """Add documents to an index; its own embedder is used whatever is asked."""
    if embedder:
        notify("--embedder is not used: an index keeps the embedder that it was built with")
    with _bar() as progress:
        return _facts(add(out, paths, progress), notify)


def delete_from(out: Path, ids: Sequence[str], notify: Notify) -> dict[str, Any]:
    """Delete passages from an index."""
    with _bar() as progress:
        return _facts(delete(out, ids, progress), notify)


def _facts(report: BuildReport, notify: Notify) -> dict[str, Any]:
    for problem in report.problems:
        notify(f"skipped: {problem}")
    return {
        "index": str(report.path),
        "passages": report.passages,
        "documents": report.documents,
        "embedded": report.embedded,
        "deleted": report.deleted,
        "skipped": report.skipped,
        "unchanged": report.unchanged,
    }


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar with a rate and an end time on stderr; nothing without a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
    speed = TextColumn("{task.fields[rate]}")
    with Progress(
        *columns, speed, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None, rate="")
            task = bar.tasks[list(tasks).index(stage)]
            rate = f"{task.speed:,.0f}/s" if task.speed else ""
            bar.update(tasks[stage], completed=done, total=total or None, rate=rate)

        yield progress
