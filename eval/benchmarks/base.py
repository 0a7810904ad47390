"""What a benchmark is: tasks, the corpus they are asked over, a scorer, and a split that never moves.

Every set has one small file beside this one. A file reads data as its publisher lays it out, gives
`Task`s, and names the corpus that an index is built from.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.task import Task
from eval.data import DataFolder
from kg.errors import UsageError

Split = Literal["train", "test"]
TEST_SHARE = 0.3
WIKI = "wiki_passages/corpus.jsonl.gz"


@dataclass(frozen=True)
class Benchmark:
    """One question set.

    Attributes:
        name: as on the command line.
        tasks: in file order, with unique ids.
        corpus: files that hold the passages; empty for the bundled library.
        scorer: its official answer scorer, by name.
        skipped: rows that were left out, each with its place and the reason.
        graph: files of triples that the questions are asked over.
        needs: tools without which the questions make no sense; a closed-book run needs none.
    """

    name: str
    tasks: tuple[Task, ...]
    corpus: tuple[Path, ...]
    scorer: str = "squad2"
    skipped: tuple[str, ...] = ()
    graph: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()


Loader = Callable[[DataFolder, Split], Benchmark]
Make = Callable[[dict[str, Any]], Task]


def split_of(key: str) -> Split:
    """The split of a question (or of its article), by hash, so that it never moves.

    Shared data holds no official training part of these sets; this rule makes a held-out part that
    no training run of this project reads.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def read_tasks(
    path: Path, make: Make, split: Split | None = None, key: Callable[[Task], str] | None = None
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Tasks of a JSONL file, and what was wrong with rows that give none.

    Args:
        path: the file.
        make: a task from a row; may raise KeyError, TypeError, ValueError, IndexError or
            UsageError.
        split: part to keep; None keeps all.
        key: what decides a task's split; its id by default.

    Raises:
        UsageError: the file cannot be read at all.
    """
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for place, row in rows(path, problems):
        try:
            task = make(row)
        except (KeyError, TypeError, ValueError, IndexError, UsageError) as error:
            problems.append(f"{place}: {_cause(error)}")
            continue
        if not task.question.strip():
            problems.append(f"{place}: the question is empty")
        elif task.id in tasks:
            problems.append(f"{place}: the id '{task.id}' is there already")
        elif split is None or split_of(key(task) if key else task.id) == split:
            tasks[task.id] = task
    return tuple(tasks.values()), tuple(problems)


def rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and value of each row of a JSONL file, gzip-compressed or not; broken ones go to
    `problems`.

    Raises:
        UsageError: the file is missing.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                if isinstance(row, dict):
                    yield f"{path}:{number}", row
                else:
                    problems.append(f"{path}:{number}: not an object")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", "point --data or AGENT_DATA at it") from error
    except (EOFError, OSError, zlib.error) as error:
        problems.append(f"{path}: cut off after line {number}: {error}")


def titles_to_ids(corpus: Path) -> dict[str, list[str]]:
    """Passage ids by title."""
    index: dict[str, list[str]] = {}
    for _, row in rows(corpus, []):
        index.setdefault(row["title"], []).append(str(row["id"]))
    return index


def evidence(
    titles: Iterable[str], index: dict[str, list[str]], among: Iterable[str]
) -> tuple[str, ...]:
    """Ids of the passages with these titles, within the question's own context."""
    context = set(among)
    ids = (i for title in dict.fromkeys(titles) for i in index.get(title, []))
    return tuple(i for i in ids if i in context)


def choices(stem: str, options: Sequence[str], right: int, **fields: Any) -> Task:
    """A multiple-choice task: the options are part of the question, lettered from A.

    `meta` holds `choices` and `right` for the scorer; answers are the right text and its letter.
    """
    lettered = [f"{chr(ord('A') + n)}) {option}" for n, option in enumerate(options)]
    return Task(
        question="\n".join([" ".join(stem.split()), *lettered]),
        answers=(options[right], chr(ord("A") + right)),
        answerable=True,
        meta={"choices": list(options), "right": right},
        **fields,
    )


def testing_only(name: str, split: Split) -> None:
    """For sets that are for testing alone.

    Raises:
        UsageError: the training part was asked for.
    """
    if split == "train":
        raise UsageError(f"'{name}' is for testing only", "train on another set")


def _cause(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
