"""SelfAware: questions that have an answer, and questions that nobody could answer."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`."""
    tasks, skipped = read_tasks(data.file("selfaware/qa.jsonl.gz"), _task, split)
    return Benchmark("selfaware", tasks, (data.file(WIKI),), "squad2", skipped)


def _task(row: dict[str, Any]) -> Task:
    answerable = bool(row["answerable"])
    return Task(
        id=f"selfaware-{row['question_id']}",
        question=row["question"],
        answers=tuple(row["answer"] or ()) if answerable else (),
        answerable=answerable,
        kind="answerable" if answerable else "unanswerable",
    )
