"""TriviaQA: trivia with long alias lists; passages from a Wikipedia sample."""

from __future__ import annotations

import ast
from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks, testing_only, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """All questions of the sample, for testing."""
    testing_only("triviaqa", split)
    tasks, skipped = read_tasks(data.file("triviaqa_mini/qa.jsonl.gz"), _task)
    return Benchmark("triviaqa", tasks, (data.file(WIKI),), "triviaqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    return Task(f"trivia-{row['row']}", row["question"], _aliases(row["answer"]), kind="one_hop")


def _aliases(text: str) -> tuple[str, ...]:
    """The list that the carrier wrote as a string, in Python's way or JSON's."""
    try:
        found = ast.literal_eval(text)
    except SyntaxError as error:
        raise ValueError(f"the answers are no list: {error}") from error
    return texts(found, "answer")
