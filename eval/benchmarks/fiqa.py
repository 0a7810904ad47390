"""FiQA (BEIR): questions about money with the posts that answer them; retrieval only."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, read_tasks, testing_only
from eval.benchmarks.scifact import judged, qrels
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions, for testing."""
    testing_only("fiqa", split)
    problems: list[str] = []
    relevant = qrels(data.file("fiqa/qrels.tsv"), problems)

    def make(row: dict[str, Any]) -> Task:
        id = str(row["_id"])
        return Task(id, row["text"], kind="opinion", evidence=judged(relevant, id))

    tasks, skipped = read_tasks(data.file("fiqa/queries.jsonl"), make)
    return Benchmark(
        "fiqa", tasks, (data.file("fiqa/corpus.jsonl.gz"),), "squad", (*problems, *skipped)
    )
