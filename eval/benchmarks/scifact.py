"""SciFact (BEIR): scientific claims with the abstracts that bear on them; retrieval only.

The sample holds no verdicts, so that answers have no gold and only what was found is scored.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import (
    BAD_ROW,
    Benchmark,
    Split,
    cause,
    read_tasks,
    testing_only,
    texts,
)
from eval.data import DataFolder
from kg.errors import UsageError


def load(data: DataFolder, split: Split) -> Benchmark:
    """All claims, for testing."""
    testing_only("scifact", split)
    problems: list[str] = []
    relevant = qrels(data.file("scifact/qrels.tsv"), problems)

    def make(row: dict[str, Any]) -> Task:
        id = str(row["_id"])
        return Task(id, row["text"], kind="claim", evidence=judged(relevant, id))

    tasks, skipped = read_tasks(data.file("scifact/queries.jsonl"), make)
    return Benchmark(
        "scifact", tasks, (data.file("scifact/corpus.jsonl.gz"),), "squad", (*problems, *skipped)
    )


def qrels(path: Path, problems: list[str]) -> dict[str, list[str]]:
    """Relevant document ids by query id, from a BEIR relevance table; broken rows go to `problems`.

    Raises:
        UsageError: the file is no table of text.
    """
    found: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), 2):
                try:
                    query, document = texts(
                        [row["query-id"], row["corpus-id"]], "query-id, corpus-id"
                    )
                    if int(row["score"]) > 0:
                        found.setdefault(query, []).append(document)
                except BAD_ROW as error:
                    problems.append(f"{path}:{number}: {cause(error)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return found


def judged(relevant: dict[str, list[str]], id: str) -> tuple[str, ...]:
    """The passages that are relevant to a query.

    Raises:
        ValueError: there is none, so that nothing could be scored.
    """
    if id not in relevant:
        raise ValueError(f"qrels.tsv holds no relevant passage for '{id}'")
    return tuple(relevant[id])
