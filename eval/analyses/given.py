"""SPARKLE's three conditions: the plan given, the knowledge given, the sub-questions one by one.

Source: SPARKLE, "Beyond Accuracy" (arXiv 2506.04723). With the plan, what is left is to find and read;
with the knowledge, to put it together; sub-questions with all earlier ones solved show which step fails.
The gain over the plain run on the same questions is the analysis: `agent compare PLAIN GIVEN`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from agent.task import Task
from kg.errors import UsageError

Condition = Literal["", "plan", "knowledge", "decomposition"]
OF, STEPS = "of", "steps"  # in the meta of a step: id of its question, and how many steps that has
_CARRIED_BY = {
    "plan": "fictional worlds, musique and strategyqa do",
    "knowledge": "fictional worlds, musique and strategyqa do",
    "decomposition": "musique and fictional worlds of this version do",
}


def given(tasks: Iterable[Task], condition: Condition) -> Iterator[Task]:
    """The tasks under a condition; those that do not carry what it gives are left out.

    A plan is `meta["plan"]`, knowledge is `meta["knowledge"]`. A decomposed task becomes one task for
    each of `meta["steps"]` (sub-question, accepted answers, and evidence where it is known), with `#1`,
    `#2`, … behind its id; its own id and the number of steps stand in `meta`, so that a run is compared
    by question.
    """
    for task in tasks:
        if not condition:
            yield task
            continue
        plan, knowledge = task.meta.get("plan", ()), task.meta.get("knowledge", ())
        if condition == "plan" and plan:
            yield _with(task, "Plan", plan)
        elif condition == "knowledge" and knowledge:
            yield _with(task, "Known", knowledge)
        elif condition == "decomposition":
            yield from _decomposed(task, task.meta.get("steps", ()))


def require_some(tasks: Sequence[Task], condition: Condition, name: str) -> None:
    """Refuse a set that has nothing to give.

    Raises:
        UsageError: no task of the set carries what the condition gives.
    """
    if condition and not tasks:
        raise UsageError(
            f"the questions of '{name}' carry no {condition}",
            _CARRIED_BY[condition],
        )


def _with(task: Task, title: str, lines: Sequence[str]) -> Task:
    listed = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    return replace(task, question=f"{task.question}\n{title}:\n{listed}")


def _decomposed(task: Task, steps: Sequence[Mapping[str, Any]]) -> Iterator[Task]:
    solved: list[str] = []
    for number, step in enumerate(steps, 1):
        asked = replace(
            task,
            id=f"{task.id}#{number}",
            question=step["question"],
            answers=tuple(step["answers"]),
            answerable=True,
            kind=f"step {number}",
            evidence=tuple(step.get("evidence", ())),
            meta={OF: task.id, STEPS: len(steps)},
        )
        yield _with(asked, "Known", solved) if solved else asked
        solved.append(f"{step['question']} {step['answers'][0]}")
