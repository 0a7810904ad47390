"""PubMedQA-L: yes, no or maybe, from the abstract that the question was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.benchmarks.base import BAD_ROW, Benchmark, Split, choices, read_tasks, rows, texts
from eval.data import DataFolder

_DECISIONS = ["yes", "no", "maybe"]


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose article falls into `split`; the corpus is the abstracts of all of them."""
    path = data.file("pubmedqa/qa.jsonl.gz")
    tasks, skipped = read_tasks(path, _task, split)
    corpus = data.derived("pubmedqa/corpus.jsonl", _abstracts(path))
    return Benchmark("pubmedqa", tasks, (corpus,), "hotpotqa", skipped)


def _abstracts(path: Path) -> Iterator[dict[str, Any]]:
    """Passages of the rows that hold one; `_task` reports the others."""
    for _, row in rows(path, []):
        try:
            yield {"id": str(row["pmid"]), "title": "", "text": _abstract(row)}
        except BAD_ROW:
            continue


def _abstract(row: dict[str, Any]) -> str:
    return " ".join(texts(row["CONTEXTS"], "CONTEXTS"))


def _task(row: dict[str, Any]) -> Task:
    right = _DECISIONS.index(row["final_decision"])
    pmid = str(row["pmid"])
    _abstract(row)
    return choices(row["QUESTION"], _DECISIONS, right, id=pmid, kind="choice", evidence=(pmid,))
