"""SQuAD 2.0: one paragraph a question, half of them unanswerable. Split by article."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, flag, read_tasks, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions of the articles that fall into `split`."""
    tasks, skipped = read_tasks(
        data.file("squad2/qa.jsonl.gz"), _task, split, lambda task: str(task.meta["article"])
    )
    return Benchmark("squad2", tasks, (data.file("squad2/corpus.jsonl.gz"),), "squad2", skipped)


def _task(row: dict[str, Any]) -> Task:
    impossible = flag(row["is_impossible"], "is_impossible")
    return Task(
        id=row["id"],
        question=row["question"].strip(),
        answers=tuple(dict.fromkeys(texts(row["all_answers"] or row["answers"], "answers"))),
        answerable=not impossible,
        kind="unanswerable" if impossible else "one_hop",
        evidence=(row["context_id"],),
        meta={"article": row["title"]},
    )
