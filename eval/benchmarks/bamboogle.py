"""Bamboogle: two-hop questions that search engines answer wrongly."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing."""
    testing_only("bamboogle", split)
    tasks, skipped = read_tasks(data.file("bamboogle/qa.jsonl.gz"), _task)
    return Benchmark("bamboogle", tasks, (data.file(WIKI),), "squad", skipped)


def _task(row: dict[str, Any]) -> Task:
    return Task(row["id"], row["Question"], texts(row["answer"], "answer"), kind="2hop")
