"""NQ-open: real search-engine questions with short answers; passages from a Wikipedia sample."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose row falls into `split`; which passages support them is not known."""
    tasks, skipped = read_tasks(data.file("nq_open/qa.jsonl.gz"), _task, split)
    return Benchmark("nq_open", tasks, (data.file(WIKI),), "nq_open", skipped)


def _task(row: dict[str, Any]) -> Task:
    return Task(
        id=f"nq-{row['row']}",
        question=row["question"],
        answers=texts(row["answer"], "answer"),
        kind="one_hop",
    )
