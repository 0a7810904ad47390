"""Which tasks the policy of a run answers by itself: closed-book samples before the first step.

Source: IKEA (arXiv 2505.07596): a question is known when at least one of N closed-book samples is right.
`rl.closed_book` does the same as a command; here the run's own engine is asked, and the labels lie in
the run's folder, so that a run that goes on has the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.sample import score_one
from rl import run_folder
from rl.closed_book import label_of
from rl.curriculum import Drawn
from rl.question_sets import QuestionSet
from rl.rewards.context import LABEL, task_key
from rl.rollouts import Stage, Told, groups_of
from rl.train_recipe import TrainRecipe

_FILE = "known.json"


def tasks_of(sets: Sequence[QuestionSet]) -> list[Task]:
    """The tasks of all sets, in order."""
    return [task for one in sets for task in one.tasks]


def told_labels(tasks: Sequence[Task]) -> dict[str, bool]:
    """`task_key` to the label that `agent probe` stored with the task."""
    return {task_key(task): label for task in tasks if (label := label_of(task)) is not None}


def foreign_labels(tasks: Sequence[Task], base: str) -> str:
    """What to warn of before labels are used: how many are of other policies; "" when none is.

    Args:
        tasks: with their labels, or without.
        base: name of the policy that is to learn; its version is not looked at.
    """
    told = [task.meta[LABEL] for task in tasks if label_of(task) is not None]
    names = [str(label.get("policy", "")).rpartition("@")[0] for label in told]
    others = sorted({name or "nobody named" for name in names if name != base})
    if not others:
        return ""
    count = sum(name != base for name in names)
    return (
        f"{count} of {len(names)} labels tell what another policy knows ({', '.join(others)}), "
        f"not '{base}': agent probe --policy {base}, or tasks.probe, asks it"
    )


async def known_tasks(
    closed: Sequence[QuestionSet], stage: Stage, recipe: TrainRecipe, run: Path, told: Told
) -> dict[str, bool]:
    """`task_key` to whether the policy knows the task; asked once a run.

    A task without a gold answer has nothing to be known. Failed samples count for nothing: a task that
    has no other has no label.

    Args:
        closed: the sets of the run, opened without tools.
        stage: plays with the weights that the run begins with.
        recipe: of the run; `tasks.probe` samples a task.
        run: its folder.
        told: gets samples done and their total.

    Raises:
        PolicyUnavailableError: the policy failed in every sample.
    """
    path = run / _FILE
    keys = {task_key(task) for task in tasks_of(closed)}
    if path.is_file() and (kept := json.loads(path.read_text("utf-8"))).keys() == keys:
        return {key: label for key, label in kept.items() if label is not None}
    drawn = [Drawn(one, task) for one in closed for task in one.tasks if task.answers]
    size = recipe.tasks.probe
    rollouts = recipe.rollouts.model_copy(update={"size": size, "misled": 0.0})
    played = await stage.play(groups_of(0, drawn, rollouts, recipe.seed), told)
    known = {task_key(task): False for task in tasks_of(closed) if not task.answers}
    for number, (source, task) in enumerate(drawn):
        samples = played[number * size : (number + 1) * size]
        whole = [sample for sample in samples if sample.status is not Status.FAILED]
        if whole:
            known[task_key(task)] = any(_right(source, sample) for sample in whole)
    run_folder.write(path, {key: known.get(key) for key in sorted(keys)})
    return known


def _right(source: QuestionSet, sample: Trajectory) -> bool:
    return score_one(source.name, source.scorer, sample.task, sample).right == 1.0


def balanced(
    sets: Sequence[QuestionSet], known: dict[str, bool], seed: int
) -> tuple[QuestionSet, ...]:
    """The sets with as many known tasks as unknown ones, drawn by seed; unchanged without either.

    Tasks that have no answer or no label are neither and stay.

    Args:
        sets: of the run.
        known: `task_key` to label.
        seed: of the draw.
    """
    asked = list(dict.fromkeys(task_key(task) for task in tasks_of(sets) if task.answers))
    sides = [[key for key in asked if known.get(key) is side] for side in (True, False)]
    size = min(map(len, sides))
    if not size:
        return tuple(sets)
    left: set[str] = set()
    for side in sides:
        order = np.random.default_rng(seed).permutation(len(side))
        left |= {side[i] for i in order[size:]}
    return tuple(
        replace(one, tasks=tuple(task for task in one.tasks if task_key(task) not in left))
        for one in sets
    )
