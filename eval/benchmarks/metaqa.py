"""MetaQA: questions of one to three hops over a graph of films."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, flag, read_tasks, texts
from eval.data import DataFolder

_HOPS = (1, 2, 3)


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose topic falls into `split`, so that no film is in both; one whose answers the graph
    does not give is left out and told."""
    found: list[Task] = []
    problems: list[str] = []
    for hops in _HOPS:
        path = data.file(f"metaqa/qa_{hops}hop.jsonl.gz")
        tasks, skipped = read_tasks(path, _task, split, lambda task: task.meta["topics"][0])
        found += tasks
        problems += skipped
    graph = (data.file("metaqa/kb.tsv.gz"),)
    return Benchmark(
        "metaqa", tuple(found), (), "entities", tuple(problems), graph=graph, needs=("kg",)
    )


def _task(row: dict[str, Any]) -> Task:
    if not flag(row["answers_match_kb"], "answers_match_kb"):
        raise ValueError(f"following '{row['qtype']}' over the graph does not give the answers")
    return Task(
        id=row["id"],
        question=row["question"].replace("[", "").replace("]", ""),
        answers=texts(row["answers"], "answers"),
        answerable=True,
        kind=f"{row['hop']}hop",
        meta={"topics": [row["topic_entity"]], "path": row["qtype"]},
    )
