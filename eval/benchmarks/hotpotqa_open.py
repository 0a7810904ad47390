"""HotpotQA without its passages: questions and answers, asked over a Wikipedia sample."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`, as in `hotpotqa`: a question of both is in one split."""
    tasks, skipped = read_tasks(data.file("hotpotqa/qa_no_context.jsonl.gz"), _task, split)
    return Benchmark("hotpotqa_open", tasks, (data.file(WIKI),), "hotpotqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    """The id is the publisher's, or the row in the official order, named as `hotpotqa` names it."""
    id = row["id"] if "id" in row else f"dev-row-{row['row']}"
    return Task(id, row["question"], (row["answer"],), kind=row["type"])
