"""FRAMES: questions over several Wikipedia pages; passages from a Wikipedia sample."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing. The official figure is an LLM judge's."""
    testing_only("frames", split)
    tasks, skipped = read_tasks(data.file("frames/qa.jsonl.gz"), _task)
    return Benchmark("frames", tasks, (data.file(WIKI),), "squad", skipped)


def _task(row: dict[str, Any]) -> Task:
    kinds = str(row["reasoning_types"]).split(" | ")
    answers = texts(row["answer"], "answer")
    return Task(f"frames-{row['id']}", row["Question"], answers, kind=kinds[0])
