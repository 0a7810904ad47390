"""Anybody's questions: a JSONL file with a question a line, and the regression tasks that
`agent trace regress` collects.

Fields: `question` (text), `answers` (list of accepted texts; `answer` for a single one), and
optionally `id`, `answerable` (false: the right reply is to abstain), `kind`, `evidence` (passage ids),
`choices` with `right` (index), `meta`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, choices, read_tasks, texts


def load_file(path: Path) -> Benchmark:
    """The questions of a file; its corpus is what --corpus says, the bundled library otherwise."""
    tasks, skipped = read_tasks(path, task_of)
    return Benchmark(path.name.split(".jsonl")[0], tasks, (), "squad2", skipped)


def task_of(row: dict[str, Any]) -> Task:
    """A task from a row.

    Raises:
        KeyError, TypeError, ValueError, UsageError: a field is missing or of another type.
    """
    asked = Task.ask(_stem(row["question"]))
    given = texts(
        row.get("answers", [] if row.get("answer") is None else [row["answer"]]), "answers"
    )
    fields: dict[str, Any] = {
        "id": asked.id if row.get("id") is None else str(row["id"]),
        "kind": str(row.get("kind", "")),
        "evidence": tuple(map(str, _listed(row.get("evidence", ())))),
    }
    meta = dict(row.get("meta", {}))
    if "choices" in row:
        made = choices(asked.question, row["choices"], row["right"], **fields)
        return replace(made, meta={**meta, **made.meta})
    answerable = row.get("answerable")
    if not given and answerable is not False:
        raise ValueError('there is no answer; say "answerable": false where that is meant')
    return Task(question=asked.question, answers=given, answerable=answerable, meta=meta, **fields)


def _stem(question: Any) -> str:
    if not isinstance(question, str):
        raise ValueError(f"'question' holds {question!r:.80}, which is no text")
    return question


def _listed(ids: Any) -> list[Any]:
    if not isinstance(ids, list | tuple):
        raise ValueError(f"'evidence' is not a list of passage ids: {ids!r:.80}")
    return list(ids)
