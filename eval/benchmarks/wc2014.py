"""WorldCup2014: paths and conjunctions over a graph of players, clubs and countries."""

from __future__ import annotations

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split
from eval.benchmarks.paths import path_tasks
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose topic falls into `split`."""
    found: list[Task] = []
    problems: list[str] = []
    for part in ("path2", "conjunctive"):
        tasks, skipped = path_tasks(data.file(f"wc2014/{part}.tsv"), part, split)
        found += tasks
        problems += skipped
    graph = (data.file("wc2014/kb.tsv"),)
    return Benchmark(
        "wc2014", tuple(found), (), "entities", tuple(problems), graph=graph, needs=("kg",)
    )
