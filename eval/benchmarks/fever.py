"""FEVER: claims that Wikipedia supports, refutes or does not decide; passages from a sample of it."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, read_tasks
from eval.data import DataFolder

_ANSWERS = {"SUPPORTS": "yes", "REFUTES": "no"}


def load(data: DataFolder, split: Split) -> Benchmark:
    """Claims whose id falls into `split`; a claim that is not decided is right when declined.

    The figure is the accuracy of the label, not FEVER's own score, which wants the sentences too.
    """
    tasks, skipped = read_tasks(data.file("fever/claims.jsonl.gz"), _task, split)
    return Benchmark("fever", tasks, (data.file(WIKI),), "hotpotqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    label = row["label"]
    if label != "NOT ENOUGH INFO" and label not in _ANSWERS:
        raise ValueError(f"the label '{label}' is none of FEVER's")
    answer = _ANSWERS.get(label)
    return Task(
        id=str(row["id"]),
        question=f"Is this true? {row['claim']}",
        answers=(answer,) if answer else (),
        answerable=answer is not None,
        kind=label.lower(),
    )
