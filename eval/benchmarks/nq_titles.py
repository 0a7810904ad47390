"""Natural Questions with the title of the gold article; passages from a Wikipedia sample."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing."""
    testing_only("nq_titles", split)
    tasks, skipped = read_tasks(data.file("nq_with_titles/qa.jsonl.gz"), _task)
    return Benchmark("nq_titles", tasks, (data.file(WIKI),), "nq_open", skipped)


def _task(row: dict[str, Any]) -> Task:
    answers = row["short_answers"] if "short_answers" in row else row["answer"]
    id = row["example_id"] if "example_id" in row else row["id"]
    return Task(f"nq-{id}", row["question"], texts(answers, "answer"), kind="one_hop")
