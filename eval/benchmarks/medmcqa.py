"""MedMCQA: questions of Indian medical entrance examinations, by subject."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, choices, read_tasks
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`; no medical corpus comes with them."""
    tasks, skipped = read_tasks(data.file("medmcqa/qa.jsonl.gz"), _task, split)
    return Benchmark("medmcqa", tasks, (data.file(WIKI),), "squad", skipped)


def _task(row: dict[str, Any]) -> Task:
    options = [row[name] for name in ("opa", "opb", "opc", "opd")]
    return choices(row["question"], options, row["cop"] - 1, id=row["id"], kind="choice")
