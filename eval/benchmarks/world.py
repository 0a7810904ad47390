"""A fictional world (`agent world make`): its questions over its own corpus."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from agent.misleading import RESTATED
from agent.task import Task
from eval.benchmarks.base import Benchmark, Split, read_tasks
from eval.fictional.make import read_world, require_own
from eval.fictional.passages import restated

NEEDED = {"graph": "knowledge-graph", "chemistry": "chemistry"}


def load_world(folder: Path, split: Split) -> Benchmark:
    """The questions of one split; kinds that need a tool the agent does not have are left out.

    Raises:
        UsageError: the folder is no world, or a mixture of two.
    """
    facts, name = read_world(folder), f"tasks-{split}.jsonl"
    require_own(folder, facts, name, "corpus.jsonl")
    tasks, problems = read_tasks(folder / name, Task.from_dict)
    kept = tuple(_told_twice(task) for task in tasks if task.kind not in NEEDED)
    left = Counter(task.kind for task in tasks if task.kind in NEEDED)
    notes = (
        f"{count} questions of the kind '{kind}' need a {NEEDED[kind]} tool"
        for kind, count in sorted(left.items())
    )
    name = f"world-{facts['seed']}-{facts['entities']}"
    return Benchmark(name, kept, (folder / "corpus.jsonl",), "squad2", (*problems, *notes))


def _told_twice(task: Task) -> Task:
    """A task that knows which passages tell its evidence in other words."""
    if not task.evidence:
        return task
    return replace(task, meta={**task.meta, RESTATED: restated(task.evidence)})
