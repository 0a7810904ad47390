"""NQ-open: real search-engine questions with short answers; passages from the Wikipedia sample."""

from __future__ import annotations

from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, rows, split_of


def load(data: Path, split: Split) -> Benchmark:
    """Questions whose row falls into `split`; which passages support them is not known."""
    tasks = tuple(
        Task(
            id=f"nq-{row['row']}",
            question=row["question"],
            answers=tuple(row["answer"]),
            answerable=None,
            kind="one_hop",
        )
        for row in rows(data / "nq_open" / "qa.jsonl.gz")
        if split_of(f"nq-{row['row']}") == split
    )
    return Benchmark("nq_open", tasks, (data / "wiki_passages" / "corpus.jsonl.gz",))
