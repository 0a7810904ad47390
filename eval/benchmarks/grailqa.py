"""GrailQA: questions over all of Freebase, by how far they lie from the training part."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing; asked over text, as no Freebase is served any more."""
    testing_only("grailqa", split)
    tasks, skipped = read_tasks(data.file("grailqa/qa.jsonl.gz"), _task)
    return Benchmark("grailqa", tasks, (data.file(WIKI),), "entities", skipped)


def _task(row: dict[str, Any]) -> Task:
    named = (a.get("entity_name") or a["answer_argument"] for a in row["answer"])
    answers = tuple(dict.fromkeys(named))
    return Task(str(row["qid"]), row["question"], answers, answerable=True, kind=row["level"])
