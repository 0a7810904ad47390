"""The folder of a training run: whose it is, and how the run went.

`recipe.json` is the resolved recipe, `rows.json` or `inputs.json` what it is trained on; a folder that
holds others is refused. `metrics.jsonl` has one line an optimizer step, `events.jsonl` one for each
thing that went wrong, `report.json` the end. Only the main process writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from agent.trajectory import Trajectory
from kg import lock, strict_json
from kg.errors import UsageError
from rl import ranks
from rl.packing import Row
from rl.recipe import Strict

log = logging.getLogger(__name__)
RECIPE = "recipe.json"
METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other processes off a run's folder while this one writes to it; ends with the process too.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    busy, hint = f"another process is training in {run}", "wait for it, or choose another --out"
    with lock.held(run / lock.LOCK, busy, hint):
        yield


def claim(run: Path, recipe: Strict, free: Sequence[str] = ()) -> None:
    """Make a folder this recipe's.

    Args:
        run: the folder.
        recipe: of the run.
        free: sections, and keys of sections as `section.key`, that may differ from those the run was
            begun with; the new ones are written.

    Raises:
        UsageError: it is another recipe's, or cannot be written.
    """
    value = json.loads(recipe.model_dump_json())

    def today(there: Any) -> Any:
        """A recipe that was written before a key was there has that key's default."""
        try:
            return json.loads(type(recipe).model_validate(there).model_dump_json())
        except (ValueError, UsageError):
            return there

    _keep(run, RECIPE, value, "a run of another recipe", free, today)


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


def claim_episodes(run: Path, found: Sequence[Trajectory]) -> None:
    """Make a folder these logged episodes', with what is attached to them.

    Raises:
        UsageError: its run was begun on others; the store may have grown since.
    """
    digest = hashlib.sha256()
    for one in found:
        digest.update(one.id.encode() + one.token_ids.tobytes())
        digest.update(json.dumps(dict(one.rewards), sort_keys=True).encode())
    facts = {"episodes": len(found), "sha256": digest.hexdigest()}
    _keep(run, "episodes.json", facts, "a run that was begun on other episodes")


def _keep(
    run: Path,
    name: str,
    value: Any,
    other: str,
    free: Sequence[str] = (),
    today: Callable[[Any], Any] = lambda there: there,
) -> None:
    path = run / name
    try:
        there = today(json.loads(path.read_text("utf-8"))) if path.is_file() else None
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "choose another --out") from error
    begun, wanted = _without(there, free), _without(value, free)
    if there is not None and begun != wanted:
        keys = sorted(_differing(begun, wanted))
        which = f": {', '.join(keys[:3])}{', …' if keys[3:] else ''} differ" if all(keys) else ""
        raise UsageError(f"{run} holds {other}{which}", "choose another --out")
    if there != value:
        write(path, value)


def _without(value: Any, free: Sequence[str]) -> Any:
    """A recipe without some sections, or keys of sections."""
    if not isinstance(value, dict):
        return value
    out = {key: inner for key, inner in value.items() if key not in free}
    for section, _, key in (name.partition(".") for name in free):
        if key and isinstance(out.get(section), dict):
            out[section] = {k: inner for k, inner in out[section].items() if k != key}
    return out


def _differing(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """The keys whose values differ, as `section.key`."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        yield from [name] if one != other else []
        return
    for key in one.keys() | other.keys():
        yield from _differing(one.get(key), other.get(key), f"{name}.{key}" if name else str(key))


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


def put(partial: Path, target: Path) -> None:
    """Give a folder its place; what was there goes once the new one is there.

    Raises:
        OSError: it cannot be moved.
    """
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy(source: Path, target: Path, also: Mapping[str, Any] | None = None) -> None:
    """Copy a folder of the run in one step; in the main process alone.

    Args:
        source: the folder.
        target: replaced when it is there.
        also: names of JSON files that the copy holds besides, and what is in them.

    Raises:
        UsageError: it cannot be written.
    """
    if not ranks.is_main():
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        for name, value in (also or {}).items():
            (partial / name).write_text(strict_json.dumps(value) + "\n", "utf-8")
        put(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


@contextmanager
def metrics(run: Path, after: int) -> Iterator[Metrics]:
    """The file of step reports, going on after step `after`; later steps of a killed run go, and what
    happened in them."""
    if not ranks.is_main():
        yield Metrics(None)
        return
    cut(run, after)
    with (run / METRICS).open("a", encoding="utf-8") as file:
        yield Metrics(file)


def cut(run: Path, after: int) -> None:
    """Remove reports and events of the steps after `after`; in the main process alone."""
    for path in (run / METRICS, run / EVENTS):
        kept = [line for line in lines(path) if line["step"] <= after]
        if path.is_file():
            partial = path.with_name(f".{path.name}.part")
            partial.write_text("".join(strict_json.dumps(line) + "\n" for line in kept), "utf-8")
            os.replace(partial, path)


def note(run: Path, step: int, kind: str, text: str) -> None:
    """Write an event of the run down. A full disk must not end the run here: it is logged alone."""
    if not ranks.is_main():
        return
    try:
        with (run / EVENTS).open("a", encoding="utf-8") as file:
            file.write(strict_json.dumps({"step": step, "kind": kind, "text": text}) + "\n")
    except OSError as error:
        log.warning("step %d, %s: %s (not written down: %s)", step, kind, text, error.strerror)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, in order; the last line of a killed run may be cut, and what
    cannot be read is left out."""
    out = []
    for line in path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            out += [json.loads(line)] if line.endswith("\n") else []
    return [one for one in out if isinstance(one, dict) and isinstance(one.get("step"), int)]


class Metrics:
    """Takes step reports; those of other processes than the main one go nowhere."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def add(self, facts: dict[str, Any]) -> None:
        """Write one line."""
        if self._file is not None:
            self._file.write(strict_json.dumps(facts) + "\n")
            self._file.flush()
