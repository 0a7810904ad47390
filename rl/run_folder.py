"""The folder of a training run: whose it is, and how the run went.

`recipe.json` is the resolved recipe, `rows.json` what it is trained on; a folder that holds others is
refused. `metrics.jsonl` has one line an optimizer step, `report.json` the end. Only the main process
writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from kg import strict_json
from kg.errors import UsageError
from rl import ranks
from rl.packing import Row
from rl.recipe import Strict

_METRICS = "metrics.jsonl"


def claim(run: Path, recipe: Strict) -> None:
    """Make a folder this recipe's.

    Raises:
        UsageError: it is another recipe's, or cannot be written.
    """
    _keep(run, "recipe.json", json.loads(recipe.model_dump_json()), "a run of another recipe")


def claim_rows(run: Path, train: Sequence[Row], held: Sequence[Row]) -> None:
    """Make a folder these rows'.

    Raises:
        UsageError: its run was begun on other rows.
    """
    digest = hashlib.sha256()
    for row in (*train, *held):
        digest.update(row.ids.tobytes() + row.target.tobytes())
    facts = {"train": len(train), "held": len(held), "sha256": digest.hexdigest()}
    _keep(run, "rows.json", facts, "a run that was begun on other data")


def _keep(run: Path, name: str, value: Any, other: str) -> None:
    path = run / name
    try:
        if path.is_file() and json.loads(path.read_text("utf-8")) != value:
            raise UsageError(f"{run} holds {other}", "choose another --out")
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "choose another --out") from error
    if not path.is_file():
        write(path, value)


def write(path: Path, value: Any) -> None:
    """Put JSON into a file of the run in one step; in the main process alone.

    Raises:
        UsageError: it cannot be written.
    """
    if not ranks.is_main():
        return
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(strict_json.dumps(value, indent=2) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def copy(source: Path, target: Path) -> None:
    """Copy a folder of the run in one step; in the main process alone.

    Raises:
        UsageError: it cannot be written.
    """
    if not ranks.is_main():
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


@contextmanager
def metrics(run: Path, after: int) -> Iterator[Metrics]:
    """The file of step reports, going on after step `after`; later steps of a killed run go."""
    if not ranks.is_main():
        yield Metrics(None)
        return
    path = run / _METRICS
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= after]
    partial = path.with_name(f".{path.name}.part")
    partial.write_text("".join(kept), "utf-8")
    os.replace(partial, path)
    with path.open("a", encoding="utf-8") as file:
        yield Metrics(file)


def _lines(path: Path) -> list[str]:
    """Whole lines: the last one of a killed run may be cut."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


class Metrics:
    """Takes step reports; those of other processes than the main one go nowhere."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def add(self, facts: dict[str, Any]) -> None:
        """Write one line."""
        if self._file is not None:
            self._file.write(strict_json.dumps(facts) + "\n")
            self._file.flush()
