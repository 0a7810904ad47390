"""ComplexWebQuestions: compositions, conjunctions, comparatives and superlatives over Freebase."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing; asked over text, as no Freebase is served any more."""
    testing_only("cwq", split)
    tasks, skipped = read_tasks(data.file("cwq/qa.jsonl.gz"), _task)
    return Benchmark("cwq", tasks, (data.file(WIKI),), "entities", skipped)


def _task(row: dict[str, Any]) -> Task:
    kind = row["compositionality_type"]
    return Task(row["ID"], row["question"], (row["answer"],), answerable=True, kind=kind)
