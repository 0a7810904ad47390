"""Anybody's questions: a JSONL file with a question a line, and the regression tasks that
`agent trace regress` collects.

Fields: `question` (text), `answers` (list of accepted texts; `answer` for a single one), and
optionally `id`, `answerable` (false: the right reply is to abstain), `kind`, `evidence` (passage ids),
`choices` with `right` (index), `meta`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, choices, read_tasks


def load_file(path: Path) -> Benchmark:
    """The questions of a file; its corpus is what --corpus says, the bundled library otherwise."""
    tasks, skipped = read_tasks(path, task_of)
    return Benchmark(path.name.split(".jsonl")[0], tasks, (), "squad2", skipped)


def task_of(row: dict[str, Any]) -> Task:
    """A task from a row.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or of another type.
    """
    asked = Task.ask(row["question"])
    given = row.get("answers", [row["answer"]] if row.get("answer") is not None else [])
    if isinstance(given, str) or not all(isinstance(answer, str) for answer in given):
        raise ValueError("'answers' is not a list of texts")
    fields: dict[str, Any] = {
        "id": str(row.get("id", asked.id)),
        "kind": str(row.get("kind", "")),
        "evidence": tuple(map(str, row.get("evidence", ()))),
    }
    if "choices" in row:
        return choices(asked.question, row["choices"], row["right"], **fields)
    answerable = row.get("answerable")
    if not given and answerable is not False:
        raise ValueError('there is no answer; say "answerable": false where that is meant')
    return Task(
        question=asked.question,
        answers=tuple(given),
        answerable=answerable,
        meta=dict(row.get("meta", {})),
        **fields,
    )
