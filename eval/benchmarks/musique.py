"""MuSiQue-Ans: two to four hops with answer aliases."""

from __future__ import annotations

from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, rows, split_of


def load(data: Path, split: Split) -> Benchmark:
    """Questions whose id falls into `split`."""
    tasks = tuple(
        Task(
            id=row["id"],
            question=row["question"],
            answers=(row["answer"], *row["answer_aliases"]),
            answerable=row["answerable"],
            kind=f"{row['hop']}hop",
            evidence=tuple(
                row["context_ids"][i] for i in row["supporting_idx"] if i < len(row["context_ids"])
            ),
        )
        for row in rows(data / "musique" / "qa.jsonl.gz")
        if split_of(row["id"]) == split
    )
    return Benchmark("musique", tasks, (data / "musique" / "corpus.jsonl.gz",))
