"""What a benchmark is: tasks, the corpus they are asked over, and a split that never moves.

Every set has one small file beside this one. A file reads local data as its publisher lays it out,
gives `Task`s, and names the corpus that an index is built from.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.task import Task
from kg.errors import UsageError

Split = Literal["train", "test"]
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Benchmark:
    """One question set.

    Attributes:
        name: as on the command line.
        tasks: in file order.
        corpus: files that hold the passages.
        skipped: rows that were left out, with the reason.
    """

    name: str
    tasks: tuple[Task, ...]
    corpus: tuple[Path, ...]
    skipped: tuple[str, ...] = ()


Loader = Callable[[Path, Split], Benchmark]


def split_of(key: str) -> Split:
    """The split of a question (or of its article), by hash, so that it never moves.

    Shared data holds no official training part of these sets; this rule makes a held-out part that
    no training run of this project reads.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, gzip-compressed or not.

    Raises:
        UsageError: the file is missing or a line is not JSON, with its number.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{path}:{number}: not JSON: {error}") from error
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist", "point --data or AGENT_DATA at the data folder"
        ) from error


def titles_to_ids(corpus: Path) -> dict[str, list[str]]:
    """Passage ids by title."""
    index: dict[str, list[str]] = {}
    for row in rows(corpus):
        index.setdefault(row["title"], []).append(str(row["id"]))
    return index


def evidence(
    titles: Iterable[str], index: dict[str, list[str]], among: Iterable[str]
) -> tuple[str, ...]:
    """Ids of the passages with these titles, within the question's own context."""
    context = set(among)
    ids = (i for title in dict.fromkeys(titles) for i in index.get(title, []))
    return tuple(i for i in ids if i in context)
