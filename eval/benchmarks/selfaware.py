"""SelfAware: questions that have an answer, and questions that nobody could answer."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, flag, read_tasks, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`."""
    tasks, skipped = read_tasks(data.file("selfaware/qa.jsonl.gz"), _task, split)
    return Benchmark("selfaware", tasks, (data.file(WIKI),), "squad2", skipped)


def _task(row: dict[str, Any]) -> Task:
    answerable = flag(row["answerable"], "answerable")
    return Task(
        id=f"selfaware-{row['question_id']}",
        question=row["question"],
        answers=texts(row["answer"], "answer") if answerable else (),
        answerable=answerable,
        kind="answerable" if answerable else "unanswerable",
    )
