"""The layout that HotpotQA and 2WikiMultihopQA share: supporting facts by title."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, evidence, read_tasks, titles_to_ids
from eval.data import DataFolder


def load(name: str, data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`, with the ids of their supporting passages."""
    corpus = data.file(f"{name}/corpus.jsonl.gz")
    problems: list[str] = []
    index = titles_to_ids(corpus, problems)

    def make(row: dict[str, Any]) -> Task:
        titles = (title for title, _ in row["supporting_facts"])
        return Task(
            id=row["id"],
            question=row["question"],
            answers=(row["answer"],),
            answerable=True,
            kind=row["type"],
            evidence=evidence(titles, index, row["context_ids"]),
        )

    tasks, skipped = read_tasks(data.file(f"{name}/qa.jsonl.gz"), make, split)
    return Benchmark(name, tasks, (corpus,), name, (*problems, *skipped))
