"""What a policy knows by itself: closed-book samples of each task, and a label stored with the task.

Source: IKEA (arXiv 2505.07596): a question is known when at least one of N closed-book samples is right.
The samples are collected like any rollouts, so that a killed probe goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from agent.settings import Settings
from agent.store import Filter, TrajectoryStore
from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.benchmarks import Benchmark
from eval.benchmarks.base import rows
from eval.folder import write
from eval.sample import score_one
from kg.errors import UsageError
from rl.collect import Advance, CollectRequest, Notify, Plan, carry_out, load_sets
from rl.rewards.context import LABEL, task_key


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        tasks: labelled.
        known: of them.
        accuracy: share of right samples.
        unscored: tasks without a gold answer; `unsampled`: tasks none of whose samples can be read.
        seconds: of sampling, in this process.
        skipped: rows of the data that gave no task, and samples that are damaged in the store.
    """

    tasks: int
    known: int
    accuracy: float
    unscored: int
    unsampled: int
    seconds: float
    skipped: tuple[str, ...] = ()


def probe(
    request: CollectRequest,
    settings: Settings,
    out: Path,
    notify: Notify = lambda line: None,
    advance: Advance = lambda stage, done, total, spent: None,
) -> ProbeReport:
    """Sample every task closed-book, `request.group` times; writes the labelled tasks to `out`.

    The samples themselves are in a store beside it, named like it. Tasks of two sets with the same id
    get longer ones there; a task that both sets hold is there once.

    Args:
        request: tasks, samples and seeds.
        settings: the policy; its tools are left out.
        out: a JSONL file of tasks; `meta["known"]` holds policy, samples, share right and the label.
        notify: gets one line a stage.
        advance: gets a stage, finished samples, their total, and the tokens of the new ones in words.

    Raises:
        UsageError: as `collect`, or no task has a gold answer.
        PolicyUnavailableError: as `collect`.
    """
    closed = settings.model_copy(update={"tools": ()})
    store = out.with_name(out.name + ".sqlite")
    report, plans = carry_out(request, closed, str(store), notify, advance)
    sets = load_sets(request, closed)
    problems = list(report.skipped)
    with TrajectoryStore.open(store) as opened:
        found = [_labelled(*one, opened, problems) for one in zip(sets, plans, strict=True)]
    labelled = _told_apart([task for one in found for task in one.tasks])
    unscored, unsampled = (sum(column) for column in zip(*(one[1:] for one in found), strict=True))
    if not labelled:
        what = "no task was sampled" if unsampled else "no task has a gold answer"
        raise UsageError(f"{what}: nothing can be known of it", next(iter(problems), ""))
    lines = [json.dumps(task.to_dict(), ensure_ascii=False) for task in labelled]
    write(out, ("\n".join(lines) + "\n").encode())
    return ProbeReport(
        tasks=len(labelled),
        known=sum(bool(task.meta[LABEL]["known"]) for task in labelled),
        accuracy=sum(task.meta[LABEL]["right"] for task in labelled) / len(labelled),
        unscored=unscored,
        unsampled=unsampled,
        seconds=report.seconds,
        skipped=tuple(problems),
    )


def label_of(task: Task) -> bool | None:
    """The label that `probe` stored with a task; None where there is none that can be read."""
    found = task.meta.get(LABEL)
    known = found.get("known") if isinstance(found, dict) else None
    return known if isinstance(known, bool) else None


def read_known(path: Path, problems: list[str] | None = None) -> dict[str, bool]:
    """`task_key` to label, of a file that `probe` wrote: what `RewardContext.known` holds.

    Args:
        path: the file.
        problems: gets a line for every row without a label, which is then skipped.

    Raises:
        UsageError: the file is missing, or a row has no label and `problems` is None.
    """
    found: list[str] = []
    known: dict[str, bool] = {}
    for place, row in rows(path, found):
        try:
            task = Task.from_dict(row)
            label = label_of(task)
        except (TypeError, AttributeError):  # no row of a task
            label = None
        if label is None:
            found.append(f"{place}: no label of agent probe")
        else:
            known[task_key(task)] = label
    if problems is None and found:
        raise UsageError(found[0], "agent probe TASKS --out FILE writes such a file")
    if problems is not None:
        problems.extend(found)
    return known


def _told_apart(tasks: Sequence[Task]) -> list[Task]:
    """Each task once, and no id twice."""
    single: dict[tuple[str, str], Task] = {}
    for task in tasks:
        single.setdefault((task.id, task_key(task)), task)
    count = Counter(id for id, _ in single)
    return [
        replace(task, id=f"{id}-{key[:8]}") if count[id] > 1 else task
        for (id, key), task in single.items()
    ]


class _Labelled(NamedTuple):
    """Tasks of a set with their labels, and how many have no gold answer, or no sample."""

    tasks: list[Task]
    unscored: int
    unsampled: int


def _labelled(
    found: Benchmark, plan: Plan, store: TrajectoryStore, problems: list[str]
) -> _Labelled:
    """Labels from the planned samples alone: the store may hold those of another policy too."""
    out: list[Task] = []
    unsampled = 0
    planned = {(episode.task.id, episode.meta["id"]) for episode in plan.episodes}
    scored = [task for task in found.tasks if task.answers]
    for task in scored:
        stored = store.query(Filter(task=task.id), problems)
        done = [t for t in stored if (task.id, t.id) in planned]
        samples = [t for t in done if t.status is not Status.FAILED]
        if samples:
            out.append(_with_label(task, found, samples))
        else:
            unsampled += 1
    return _Labelled(out, len(found.tasks) - len(scored), unsampled)


def _with_label(task: Task, found: Benchmark, samples: Sequence[Trajectory]) -> Task:
    right = [score_one(found.name, found.scorer, task, one).right for one in samples]
    label = {
        "policy": samples[0].policy,
        "samples": len(samples),
        "right": sum(right) / len(right),
        "known": max(right) == 1.0,
    }
    return Task.from_dict({**task.to_dict(), "meta": {**task.meta, LABEL: label}})
