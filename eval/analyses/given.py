"""SPARKLE's three conditions: the plan given, the knowledge given, the sub-questions one by one.

Source: SPARKLE, "Beyond Accuracy" (arXiv 2506.04723). With the plan, what is left is to find and read;
with the knowledge, to put it together; sub-questions with all earlier ones solved show which step fails.
The gain over the plain run on the same questions is the analysis: `agent compare PLAIN GIVEN`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from agent.task import Task
from kg.errors import UsageError

Condition = Literal["", "plan", "knowledge", "decomposition"]


def given(tasks: Iterable[Task], condition: Condition) -> Iterator[Task]:
    """The tasks under a condition; those without a plan and its findings are left out.

    A decomposed task becomes one task for each step, with `#1`, `#2`, … behind its id.
    """
    for task in tasks:
        if not condition:
            yield task
            continue
        plan, knowledge = _steps(task)
        if not plan:
            continue
        if condition == "plan":
            yield _with(task, "Plan", plan)
        elif condition == "knowledge" and knowledge:
            yield _with(task, "Known", knowledge)
        elif condition == "decomposition" and len(plan) == len(_values(knowledge)):
            yield from _decomposed(task, plan, knowledge)


def require_some(tasks: Sequence[Task], condition: Condition, name: str) -> None:
    """Refuse a set that has nothing to give.

    Raises:
        UsageError: no task of the set carries what the condition gives.
    """
    if condition and not tasks:
        raise UsageError(
            f"the questions of '{name}' carry no {condition}",
            "fictional worlds, musique and strategyqa do",
        )


def _steps(task: Task) -> tuple[list[str], list[str]]:
    return list(task.meta.get("plan", ())), list(task.meta.get("knowledge", ()))


def _with(task: Task, title: str, lines: Sequence[str]) -> Task:
    listed = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    return replace(task, question=f"{task.question}\n{title}:\n{listed}")


def _decomposed(task: Task, plan: Sequence[str], knowledge: Sequence[str]) -> Iterator[Task]:
    for number, (question, value) in enumerate(zip(plan, _values(knowledge), strict=True), 1):
        step = replace(
            task,
            id=f"{task.id}#{number}",
            question=question,
            answers=(value,),
            answerable=True,
            kind=f"step {number}",
            meta={**task.meta, "of": task.id},
        )
        yield _with(step, "Known", knowledge[: number - 1]) if number > 1 else step


def _values(knowledge: Sequence[str]) -> list[str]:
    """What each finding found: the text behind its last colon."""
    return [line.rpartition(": ")[2] for line in knowledge]
