"""StrategyQA: yes or no, by steps that the question does not name."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import WIKI, Benchmark, Split, flag, read_tasks, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`; scored as HotpotQA scores yes and no."""
    tasks, skipped = read_tasks(data.file("strategyqa/qa.jsonl.gz"), _task, split)
    return Benchmark("strategyqa", tasks, (data.file(WIKI),), "hotpotqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    plan = list(texts(row["decomposition"], "decomposition"))
    return Task(
        id=row["qid"],
        question=row["question"],
        answers=("yes" if flag(row["answer"], "answer") else "no",),
        answerable=True,
        kind=f"{len(plan)}hop",
        meta={"plan": plan, "knowledge": list(texts(row["facts"], "facts"))},
    )
