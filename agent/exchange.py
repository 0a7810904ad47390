"""Trajectories to and from files: JSON lines (`.jsonl`, `.jsonl.gz`) and Parquet, without loss.

An output file appears whole or not at all. A bad row of an input is reported with its place, skipped
and counted.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.store import Filter, TrajectoryStore
from agent.trajectory import Trajectory, TrajectoryError
from kg.errors import MissingExtraError, UsageError

_BATCH = 256


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


def export(store: TrajectoryStore, path: Path, chosen: Filter | None = None) -> int:
    """Write the chosen episodes of a store; see `write`."""
    return write(path, store.query(chosen))


def write(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a file of the kind that its name ends in; gives their number.

    Raises:
        UsageError: an unknown file ending, or the file cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    writers = {".jsonl": _write_lines, ".gz": _write_lines, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UsageError(f"cannot export to '{path.name}'", "use .jsonl, .jsonl.gz or .parquet")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = writers[path.suffix](partial, trajectories, path.suffix == ".gz")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
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
    for place, row in _rows(path, problems):
        try:
            yield Trajectory.from_dict(row)
        except TrajectoryError as error:
            problems.append(f"{place}: {error.message}")


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                if isinstance(row, dict):
                    yield f"{path}:{number}", row
                else:
                    problems.append(f"{path}:{number}: not an object")
        except (EOFError, OSError) as error:
            problems.append(f"{path}: cut off after line {number}: {error}")


def _write_lines(path: Path, trajectories: Iterable[Trajectory], packed: bool) -> int:
    count = 0
    opener = gzip.open if packed else open
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


def _write_parquet(path: Path, trajectories: Iterable[Trajectory], packed: bool) -> int:
    """Columns to filter by, the two token arrays as lists, and the rest of the record as JSON."""
    pa = _arrow()
    names = ("id", "created", "task", "policy", "status", "stop_reason", "question", "answer")
    columns = [(name, pa.string()) for name in names]
    arrays = [("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))]
    layout = pa.schema([*columns, *arrays, ("record", pa.string())])
    count, batch = 0, []
    with pa.parquet.ParquetWriter(path, layout, compression="zstd") as writer:
        for trajectory in trajectories:
            batch.append(_flat(trajectory))
            count += 1
            if len(batch) == _BATCH:
                writer.write_table(pa.Table.from_pylist(batch, layout))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, layout))
    return count


def _flat(trajectory: Trajectory) -> dict[str, Any]:
    record = trajectory.to_dict()
    task = record["task"]
    return {
        **{key: record[key] for key in ("id", "created", "policy", "status", "stop_reason")},
        "answer": _clean(record["answer"]),
        "task": task["id"],
        "question": _clean(task["question"]),
        "token_ids": record.pop("token_ids"),
        "logprobs": record.pop("logprobs"),
        "record": json.dumps(record),
    }


def _clean(text: str) -> str:
    """Parquet strings are UTF-8: a lone surrogate is replaced here and kept in the record."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    pa = _arrow()
    try:
        file = pa.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(_BATCH, columns=["record", "token_ids", "logprobs"]):
            for row in batch.to_pylist():
                number += 1
                logprobs = [None if x is None or math.isnan(x) else x for x in row["logprobs"]]
                yield (
                    f"{path}: row {number}",
                    {
                        **json.loads(row["record"]),
                        "token_ids": row["token_ids"],
                        "logprobs": logprobs,
                    },
                )
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a Parquet export of turnwise: {error}") from error
