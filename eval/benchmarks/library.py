"""The bundled library's own questions."""

from __future__ import annotations

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions of the library's split; no data folder is read, its corpus is the built-in one."""
    from kg.library.questions import load_questions

    tasks = tuple(
        Task(
            id=question.id,
            question=question.question,
            answers=tuple(question.answers),
            answerable=question.kind != "unanswerable",
            kind=question.kind,
            evidence=tuple(question.supporting),
        )
        for question in load_questions(split)
    )
    return Benchmark("library", tasks, ())
