"""Anybody's questions: a JSONL file with a question a line, and the regression tasks that
`agent trace regress` collects.

Fields: `question` (text), `answers` (list of accepted texts; `answer` for a single one), and
optionally `id`, `answerable` (false: the right reply is to abstain), `kind`, `evidence` (passage ids),
`choices` with `right` (index), `meta`. `scorer` and `corpus` (paths, relative to the file) hold for the
whole file: rows that name them must agree.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, checked, choices, read_tasks, texts
from eval.metrics import scorer

DEFAULT_SCORER = "squad2"


def load_file(path: Path, fetched: bool = False) -> Benchmark:
    """The questions of a file; its corpus is what --corpus says, else what its rows name, else the
    bundled library.

    Args:
        path: the file.
        fetched: it comes from elsewhere, so that it may not name files of this machine.

    Raises:
        UsageError: the file cannot be read.
    """
    said: dict[str, Any] = {}

    def make(row: dict[str, Any]) -> Task:
        task = checked(task_of(row))
        for name, value in _shared(row, path.parent, fetched).items():
            if said.setdefault(name, value) != value:
                raise ValueError(
                    f"'{name}' differs from that of earlier rows; give the row a file of its own"
                )
        return task

    tasks, skipped = read_tasks(path, make)
    name = path.name.split(".jsonl")[0]
    return Benchmark(
        name, tasks, said.get("corpus", ()), said.get("scorer", DEFAULT_SCORER), skipped
    )


def _shared(row: dict[str, Any], folder: Path, fetched: bool) -> dict[str, Any]:
    """What a row says for the whole of its file."""
    found: dict[str, Any] = {}
    if row.get("scorer"):
        found["scorer"] = scorer(row["scorer"]).name
    if row.get("corpus"):
        if fetched:
            raise ValueError("'corpus' names files, which a fetched file may not; use --corpus")
        found["corpus"] = tuple(folder / Path(path) for path in texts(row["corpus"], "corpus"))
    return found


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
