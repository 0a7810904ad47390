"""HotpotQA (distractor): two-hop questions with supporting titles."""

from __future__ import annotations

from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, evidence, rows, split_of, titles_to_ids


def load(data: Path, split: Split, name: str = "hotpotqa") -> Benchmark:
    """Questions whose id falls into `split`, with the ids of their supporting passages."""
    corpus = data / name / "corpus.jsonl.gz"
    index = titles_to_ids(corpus)
    tasks = tuple(
        Task(
            id=row["id"],
            question=row["question"],
            answers=(row["answer"],),
            answerable=True,
            kind=row["type"],
            evidence=evidence(
                (title for title, _ in row["supporting_facts"]), index, row["context_ids"]
            ),
        )
        for row in rows(data / name / "qa.jsonl.gz")
        if split_of(row["id"]) == split
    )
    return Benchmark(name, tasks, (corpus,))
