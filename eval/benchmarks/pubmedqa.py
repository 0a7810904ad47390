"""PubMedQA-L: yes, no or maybe, from the abstract that the question was made from."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, choices, read_tasks, rows
from eval.data import DataFolder

_DECISIONS = ["yes", "no", "maybe"]


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose article falls into `split`; the corpus is the abstracts of all of them."""
    path = data.file("pubmedqa/qa.jsonl.gz")
    abstracts = (
        {"id": str(row["pmid"]), "title": "", "text": " ".join(row["CONTEXTS"])}
        for _, row in rows(path, [])
        if "pmid" in row and "CONTEXTS" in row
    )
    corpus = data.derived("pubmedqa/corpus.jsonl", abstracts)
    tasks, skipped = read_tasks(path, _task, split)
    return Benchmark("pubmedqa", tasks, (corpus,), "hotpotqa", skipped)


def _task(row: dict[str, Any]) -> Task:
    right = _DECISIONS.index(row["final_decision"])
    pmid = str(row["pmid"])
    return choices(row["QUESTION"], _DECISIONS, right, id=pmid, kind="choice", evidence=(pmid,))
