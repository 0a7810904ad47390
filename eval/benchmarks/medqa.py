"""MedQA (US, four options): questions of a medical licensing examination."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, choices, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing; no medical corpus comes with them."""
    testing_only("medqa", split)
    tasks, skipped = read_tasks(data.file("medqa/qa.jsonl.gz"), _task)
    return Benchmark("medqa", tasks, (data.file(WIKI),), "squad", skipped)


def _task(row: dict[str, Any]) -> Task:
    letters = sorted(row["options"])
    options = [row["options"][letter] for letter in letters]
    right = letters.index(row["answer_idx"])
    return choices(row["question"], options, right, id=f"medqa-{row['row']}", kind="choice")
