"""PathQuestion: questions of two and three hops over parts of Freebase, with their gold paths."""

from __future__ import annotations

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split
from eval.benchmarks.paths import path_tasks
from eval.data import DataFolder

_PARTS = ("pq_2hop", "pq_3hop", "pql_2hop", "pql_3hop")


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose topic falls into `split`, over the union of the four graphs."""
    found: list[Task] = []
    problems: list[str] = []
    for part in _PARTS:
        tasks, skipped = path_tasks(data.file(f"pathquestion/{part}.tsv"), part, split)
        found += tasks
        problems += skipped
    graph = tuple(data.file(f"pathquestion/{part}_kb.tsv") for part in _PARTS)
    return Benchmark(
        "pathquestion", tuple(found), (), "entities", tuple(problems), graph=graph, needs=("kg",)
    )
