"""What a policy knows by itself: closed-book samples of each task, and a label stored with the task.

Source: IKEA (arXiv 2505.07596): a question is known when at least one of N closed-book samples is right.
The samples are collected like any rollouts, so that a killed probe goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.settings import Settings
from agent.store import Filter, TrajectoryStore
from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.benchmarks import Benchmark
from eval.benchmarks.base import rows
from eval.folder import write
from eval.sample import score_one
from kg.errors import UsageError
from rl.collect import Advance, CollectRequest, Notify, collect, load_set

KNOWN = "known"


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        tasks: probed; tasks without a gold answer are left out and counted in `unscored`.
        known: of them.
        accuracy: share of right samples.
        seconds: of sampling, in this process.
    """

    tasks: int
    known: int
    accuracy: float
    unscored: int
    seconds: float


def probe(
    request: CollectRequest,
    settings: Settings,
    out: Path,
    notify: Notify = lambda line: None,
    advance: Advance = lambda stage, done, total: None,
) -> ProbeReport:
    """Sample every task closed-book, `request.group` times; writes the labelled tasks to `out`.

    The samples themselves are in a store beside it, named like it.

    Args:
        request: tasks, samples and seeds.
        settings: the policy; its tools are left out.
        out: a JSONL file of tasks; `meta["known"]` holds policy, samples, share right and the label.
        notify: gets one line a stage.
        advance: gets a stage, finished samples and their total.

    Raises:
        UsageError: as `collect`, or no task has a gold answer.
        PolicyUnavailableError: as `collect`.
    """
    closed = settings.model_copy(update={"tools": ()})
    store = out.with_name(out.name + ".sqlite")
    report = collect(request, closed, str(store), notify, advance)
    sets = [load_set(name, request, closed) for name in request.tasks]
    with TrajectoryStore.open(store) as opened:
        found = [_labelled(one, opened, request) for one in sets]
    labelled = [task for tasks, _ in found for task in tasks]
    if not labelled:
        raise UsageError("no task has a gold answer: nothing can be known of it")
    lines = [json.dumps(task.to_dict(), ensure_ascii=False) for task in labelled]
    write(out, ("\n".join(lines) + "\n").encode())
    return ProbeReport(
        tasks=len(labelled),
        known=sum(bool(task.meta[KNOWN]["known"]) for task in labelled),
        accuracy=sum(task.meta[KNOWN]["right"] for task in labelled) / len(labelled),
        unscored=sum(left for _, left in found),
        seconds=report.seconds,
    )


def read_known(path: Path) -> dict[str, bool]:
    """Task id to label, of a file that `probe` wrote.

    Raises:
        UsageError: the file is missing, or a row has no label.
    """
    problems: list[str] = []
    known: dict[str, bool] = {}
    for place, row in rows(path, problems):
        try:
            known[str(row["id"])] = bool(row["meta"][KNOWN]["known"])
        except (KeyError, TypeError):
            problems.append(f"{place}: no label of agent probe")
    if problems:
        raise UsageError(problems[0], "agent probe TASKS --out FILE writes such a file")
    return known


def _labelled(
    found: Benchmark, store: TrajectoryStore, request: CollectRequest
) -> tuple[list[Task], int]:
    """Tasks with their labels, and how many have no gold answer."""
    out: list[Task] = []
    left = 0
    seeds = range(request.seed, request.seed + request.group)
    for task in found.tasks:
        done = [t for t in store.query(Filter(task=task.id)) if t.task == task and t.seed in seeds]
        samples = [t for t in done if t.status is not Status.FAILED]
        if not task.answers or not samples:
            left += 1
            continue
        out.append(_with_label(task, found, samples))
    return out, left


def _with_label(task: Task, found: Benchmark, samples: Sequence[Trajectory]) -> Task:
    right = [score_one(found.name, found.scorer, task, one).right for one in samples]
    label = {
        "policy": samples[0].policy,
        "samples": len(samples),
        "right": sum(right) / len(right),
        "known": max(right) == 1.0,
    }
    return Task.from_dict({**task.to_dict(), "meta": {**task.meta, KNOWN: label}})
