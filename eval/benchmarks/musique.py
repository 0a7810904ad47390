"""MuSiQue-Ans: two to four hops with answer aliases."""

from __future__ import annotations

from typing import Any

from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, read_tasks, texts
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """Questions whose id falls into `split`."""
    tasks, skipped = read_tasks(data.file("musique/qa.jsonl.gz"), _task, split)
    return Benchmark("musique", tasks, (data.file("musique/corpus.jsonl.gz"),), "musique", skipped)


def _task(row: dict[str, Any]) -> Task:
    context = row["context_ids"]  # exact duplicates of paragraphs are dropped from it
    steps = _solved(row["question_decomposition"])
    return Task(
        id=row["id"],
        question=row["question"],
        answers=(row["answer"], *texts(row["answer_aliases"], "answer_aliases")),
        answerable=row["answerable"],
        kind=f"{row['hop']}hop",
        evidence=tuple(context[i] for i in row["supporting_idx"] if i < len(context)),
        meta={
            "plan": [step["question"] for step in row["question_decomposition"]],
            "knowledge": [f"{step['question']}: {step['answers'][0]}" for step in steps],
            "steps": steps,
        },
    )


def _solved(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sub-questions with the answers of earlier ones (`#1`) filled in, and what each finds."""
    solved = []
    for step in steps:
        question = step["question"]
        for number, earlier in enumerate(steps, 1):
            question = question.replace(f"#{number}", str(earlier["answer"]))
        solved.append({"question": question, "answers": [str(step["answer"])]})
    return solved
