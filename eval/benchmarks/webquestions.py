"""WebQuestions: what people asked a search engine, answered with Freebase entities."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing; asked over text, as no Freebase is served any more."""
    testing_only("webquestions", split)
    tasks, skipped = read_tasks(data.file("webquestions/qa.jsonl.gz"), _task)
    return Benchmark("webquestions", tasks, (data.file(WIKI),), "entities", skipped)


def _task(row: dict[str, Any]) -> Task:
    return Task.ask(row["question"]).with_answers(texts(row["answers"], "answers"), kind="one_hop")
