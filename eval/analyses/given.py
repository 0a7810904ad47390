"""SPARKLE's three conditions: the plan given, the knowledge given, the sub-questions one by one.

Source: SPARKLE, "Beyond Accuracy" (arXiv 2506.04723). A plan is the sub-questions without any answer:
what is left is to find and read. Knowledge is the facts without the plan, of several hops the one that
holds the answer too: what is left is to put them together. Sub-questions with all earlier ones solved
show which step fails. The gain over the plain run on the same questions is the analysis:
`agent compare PLAIN GIVEN`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from agent.task import Task
from kg.errors import UsageError

Condition = Literal["", "plan", "knowledge", "decomposition"]
OF, STEPS = "of", "steps"  # in the meta of a step: id of its question, and how many steps that has
_STANDS_FOR_AN_ANSWER = re.compile(r"#\d")
_CARRIED_BY = {
    "plan": "fictional worlds, musique and strategyqa do",
    "knowledge": "fictional worlds, musique and strategyqa do",
    "decomposition": "musique and fictional worlds of this version do",
}


def given(tasks: Iterable[Task], condition: Condition) -> Iterator[Task]:
    """The tasks under a condition; those that do not carry what it gives are left out.

    A plan is `meta["plan"]`, in which `#1` stands for what step 1 finds. Knowledge is
    `meta["knowledge"]`, told in alphabetical order: the order of the steps would tell the plan.

    A decomposed task becomes one task for each of `meta["steps"]` (sub-question with earlier answers
    filled in, accepted answers, and evidence where it is known), with `#1`, `#2`, … behind its id; its
    own id and the number of steps stand in `meta`, so that a run is compared by question.
    """
    for task in tasks:
        if not condition:
            yield task
            continue
        plan, knowledge = task.meta.get("plan", ()), task.meta.get("knowledge", ())
        if condition == "plan" and plan:
            yield _with(task, _plan_title(plan), _numbered(plan))
        elif condition == "knowledge" and knowledge:
            yield _with(task, "Known", [f"- {fact}" for fact in sorted(knowledge)])
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
    return replace(task, question="\n".join([task.question, f"{title}:", *lines]))


def _numbered(lines: Sequence[str]) -> list[str]:
    return [f"{number}. {line}" for number, line in enumerate(lines, 1)]


def _plan_title(plan: Sequence[str]) -> str:
    standing = any(_STANDS_FOR_AN_ANSWER.search(step) for step in plan)
    return "Plan (#1 stands for what step 1 finds)" if standing else "Plan"


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
        yield _with(asked, "Known", _numbered(solved)) if solved else asked
        solved.append(f"{step['question']} {step['answers'][0]}")
