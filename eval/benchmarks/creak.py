"""CREAK: claims about entities that common sense and facts decide together; yes or no."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All claims of the sample, for testing; scored as HotpotQA scores yes and no."""
    testing_only("creak", split)
    tasks, skipped = read_tasks(data.file("creak/qa.jsonl.gz"), _task)
    return Benchmark("creak", tasks, (data.file(WIKI),), "hotpotqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    answer = {"true": "yes", "false": "no"}[row["label"]]
    question = f"Is this true? {row['sentence']}"
    return Task(row["ex_id"], question, (answer,), answerable=True, kind="claim")
