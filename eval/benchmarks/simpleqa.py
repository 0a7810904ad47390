"""SimpleQA: short factual questions that models get wrong from memory."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing. The official figure is an LLM judge's."""
    testing_only("simpleqa", split)
    tasks, skipped = read_tasks(data.file("simpleqa/qa.jsonl.gz"), _task)
    return Benchmark("simpleqa", tasks, (data.file(WIKI),), "squad", skipped)


def _task(row: dict[str, Any]) -> Task:
    return Task(f"simpleqa-{row['row']}", row["question"], (row["answer"],), kind="one_hop")
