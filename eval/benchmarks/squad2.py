"""SQuAD 2.0: one paragraph a question, half of them unanswerable. Split by article."""

from __future__ import annotations

from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, rows, split_of


def load(data: Path, split: Split) -> Benchmark:
    """Questions of the articles that fall into `split`."""
    tasks = tuple(
        Task(
            id=row["id"],
            question=row["question"].strip(),
            answers=tuple(dict.fromkeys(row["all_answers"] or row["answers"])),
            answerable=not row["is_impossible"],
            kind="unanswerable" if row["is_impossible"] else "one_hop",
            evidence=(row["context_id"],),
        )
        for row in rows(data / "squad2" / "qa.jsonl.gz")
        if split_of(row["title"]) == split
    )
    return Benchmark("squad2", tasks, (data / "squad2" / "corpus.jsonl.gz",))
