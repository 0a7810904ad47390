"""Trajectories to and from files: JSON lines (`.jsonl`, `.jsonl.gz`) and Parquet, without loss.

An output file appears whole or not at all. A bad row of an input is reported with its place, skipped
and counted. An SQLite store is read too, a damaged one as far as it goes.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from agent.store import Filter, TrajectoryStore
from agent.store.rows import clean
from agent.store.salvage import is_store, salvage
from agent.trajectory import Trajectory, TrajectoryError
from kg.errors import MissingExtraError, UsageError

_BATCH = 256
_ARRAYS = ("token_ids", "logprobs")
_FLAT = ("id", "created", "group", "policy", "status", "stop_reason", "answer")


@dataclass
class ImportReport:
    """What an import did; `problems` holds a line for every skipped row."""

    added: int = 0
    known: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Rows left out."""
        return len(self.problems)


def export(
    store: TrajectoryStore,
    path: Path,
    chosen: Filter | None = None,
    problems: list[str] | None = None,
) -> int:
    """Write the chosen episodes of a store; see `write`, and `TrajectoryStore.query` for `problems`."""
    return write(path, store.query(chosen, problems))


def write(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a file of the kind that its name ends in; gives their number.

    Raises:
        UsageError: an unknown file ending, or the file cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    ending = _ending(path)
    writer = _write_parquet if ending == ".parquet" else _write_lines
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = writer(unfinished, trajectories, _opener(ending))
        _sync(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def import_(store: TrajectoryStore, path: Path) -> ImportReport:
    """Add the episodes of an export; ids that are there stay as they are.

    Raises:
        UsageError: the file does not exist or is of another kind.
    """
    report = ImportReport()
    for trajectory in read(path, report.problems):
        added = store.add(trajectory)
        report.added += added
        report.known += not added
    return report


def read(path: Path, problems: list[str]) -> Iterator[Trajectory]:
    """Trajectories of a file; a bad row adds its place and cause to `problems` and is skipped.

    Raises:
        UsageError: the file does not exist or is of another kind.
    """
    if path.is_file() and is_store(path):
        yield from salvage(path, problems)
        return
    for place, row in _rows(path, problems):
        try:
            yield Trajectory.from_dict(row)
        except TrajectoryError as error:
            problems.append(f"{place}: {error.message}")


def _ending(path: Path) -> str:
    """Which of the file kinds a name is of."""
    for ending in (".jsonl", ".jsonl.gz", ".parquet"):
        if path.name.endswith(ending):
            return ending
    raise UsageError(f"'{path.name}' is no trajectory file", "use .jsonl, .jsonl.gz or .parquet")


def _opener(ending: str) -> Callable[..., Any]:
    return gzip.open if ending.endswith(".gz") else open


def _sync(path: Path) -> None:
    """Onto the disk before the name changes: a power cut must not leave an empty export."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    ending = _ending(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is no file")
    pieces = _read_parquet if ending == ".parquet" else _read_lines
    for place, made in pieces(path, problems):
        try:
            row = made()
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"{place}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            problems.append(f"{place}: not an object")


_Pieces: TypeAlias = Iterator[tuple[str, Callable[[], Any]]]


def _read_lines(path: Path, problems: list[str]) -> _Pieces:
    """Each line that is not blank, with what parses it."""
    number = 0
    try:
        with _opener(_ending(path))(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", partial(json.loads, line)
    except (EOFError, OSError, zlib.error) as error:
        problems.append(f"{path}: cut off after line {number}: {error}")


def _write_lines(path: Path, trajectories: Iterable[Trajectory], opener: Callable[..., Any]) -> int:
    count = 0
    with opener(path, "wt", encoding="utf-8") as lines:
        for trajectory in trajectories:
            lines.write(json.dumps(trajectory.to_dict()) + "\n")
            count += 1
    return count


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "Parquet") from error
    return pyarrow


def _write_parquet(path: Path, trajectories: Iterable[Trajectory], _: Callable[..., Any]) -> int:
    """Columns to filter by, the two token arrays as lists, and the rest of the record as JSON."""
    pa = _arrow()
    columns = [(name, pa.string()) for name in (*_FLAT, "task", "question")]
    arrays = [("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))]
    layout = pa.schema([*columns, ("reward", pa.float64()), *arrays, ("record", pa.string())])
    count = 0
    with pa.parquet.ParquetWriter(path, layout, compression="zstd") as writer:
        for batch in _batches(trajectories):
            writer.write_table(pa.Table.from_pylist([_flat(one) for one in batch], layout))
            count += len(batch)
    return count


def _batches(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    rest = iter(trajectories)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _flat(trajectory: Trajectory) -> dict[str, Any]:
    record = trajectory.to_dict()
    task, rewards = record["task"], record["rewards"].values()
    return {
        **{name: clean(record[name]) for name in _FLAT},
        "task": clean(task["id"]),
        "question": clean(task["question"]),
        "reward": sum(rewards) if rewards else None,
        "token_ids": record.pop("token_ids"),
        "logprobs": record.pop("logprobs"),
        "record": json.dumps(record),
    }


def _read_parquet(path: Path, problems: list[str]) -> _Pieces:
    """Each row, with what puts its record together."""
    pa = _arrow()
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=["record", *_ARRAYS]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", partial(_whole, row)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        if not number:
            raise UsageError(f"{path} is not a Parquet export of turnwise: {error}") from error
        problems.append(f"{path}: cut off after row {number}: {error}")


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(row["record"]), **{name: row[name] for name in _ARRAYS}}
