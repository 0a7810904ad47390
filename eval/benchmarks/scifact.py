"""SciFact (BEIR): scientific claims with the abstracts that bear on them; retrieval only.

The sample holds no verdicts, so that answers have no gold and only what was found is scored.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All claims, for testing."""
    testing_only("scifact", split)
    relevant = qrels(data.file("scifact/qrels.tsv"))

    def make(row: dict[str, Any]) -> Task:
        id = str(row["_id"])
        return Task(id, row["text"], kind="claim", evidence=tuple(relevant[id]))

    tasks, skipped = read_tasks(data.file("scifact/queries.jsonl"), make)
    return Benchmark("scifact", tasks, (data.file("scifact/corpus.jsonl.gz"),), "squad", skipped)


def qrels(path: Path) -> dict[str, list[str]]:
    """Relevant document ids by query id, from a BEIR relevance table."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if int(row["score"]) > 0:
                found.setdefault(row["query-id"], []).append(row["corpus-id"])
    return found
