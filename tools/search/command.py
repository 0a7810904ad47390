"""What `agent index` runs: build, add and delete with progress, and a report of plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.progress import bar
from tools.search.build import BuildReport, add, build_index, delete
from tools.search.settings import IndexSettings

Notify = Callable[[str], None]


def build(paths: Sequence[Path], out: Path, embedder: str | None, notify: Notify) -> dict[str, Any]:
    """Build an index; see `tools.search.build.build_index`."""
    settings = IndexSettings(embedder=embedder) if embedder else IndexSettings()
    with bar() as progress:
        return _facts(build_index(paths, out, settings, progress), notify)


def add_to(
    paths: Sequence[Path], out: Path, embedder: str | None, notify: Notify
) -> dict[str, Any]:
    """Add documents to an index; its own embedder is used whatever is asked."""
    if embedder:
        notify("--embedder is not used: an index keeps the embedder that it was built with")
    with bar() as progress:
        return _facts(add(out, paths, progress), notify)


def delete_from(out: Path, ids: Sequence[str], notify: Notify) -> dict[str, Any]:
    """Delete passages from an index."""
    with bar() as progress:
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
