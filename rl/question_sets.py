"""The question sets of a training run, opened: tasks, tools and budgets, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.graph import Setup
from agent.policies.base import Policy
from agent.settings import Settings
from agent.task import Task
from eval.benchmarks import Benchmark, DataFolder, load
from eval.benchmarks.world import load_world
from eval.fictional.make import make_world
from eval.run import setup_of, spread
from kg.errors import UsageError
from rl.train_recipe import Tasks

Notify = Callable[[str], None]


@dataclass(frozen=True)
class QuestionSet:
    """Tasks and what their episodes share.

    Attributes:
        scorer: of answers, by name.
        skipped: rows of the data that gave no task.
    """

    name: str
    tasks: tuple[Task, ...]
    setup: Setup
    scorer: str
    skipped: tuple[str, ...] = ()


def load_sets(
    tasks: Tasks, settings: Settings, data: str, worlds: Path, notify: Notify = lambda line: None
) -> tuple[Benchmark, ...]:
    """Make the worlds and read the sets; no model is needed yet.

    Args:
        tasks: which.
        settings: folders of this machine.
        data: where the sets' files are; see `eval.data.DataFolder`.
        worlds: folder of the run's worlds; one that is there already is used.
        notify: gets one line a stage.

    Returns:
        The sets, narrowed to the tasks that are asked for, with the corpus that will be searched.

    Raises:
        UsageError: an unknown set, one without a task that is asked for, or one that needs a tool that
            episodes do not have.
    """
    loaded = list(_loaded(tasks, settings, data, worlds, notify))
    for one in loaded:
        one.require(settings.tools, "--set rollouts.agent.tools=[{}]")
    searched = settings.corpus
    return tuple(
        replace(found, corpus=searched or found.corpus)
        for found in (_narrowed(one, tasks) for one in loaded)
    )


def open_sets(
    loaded: Sequence[Benchmark], settings: Settings, policy: Policy, notify: Notify
) -> tuple[QuestionSet, ...]:
    """Open the tools of each set and its index.

    Raises:
        UsageError: a tool that does not exist, or a corpus that cannot be read.
    """
    return tuple(
        QuestionSet(
            one.name, one.tasks, setup_of(settings, policy, one, notify), one.scorer, one.skipped
        )
        for one in loaded
    )


def _loaded(
    tasks: Tasks, settings: Settings, data: str, worlds: Path, notify: Notify
) -> Iterator[Benchmark]:
    folder = DataFolder(data, settings.benchmarks_dir)
    for name in tasks.sets:
        yield load(name, folder, tasks.split)
    if tasks.worlds is not None:
        for number in range(tasks.worlds.count):
            seed = tasks.worlds.first_seed + number
            place = worlds / tasks.worlds.folder(seed)
            if not (place / "world.json").is_file():
                notify(f"making the world {seed}")
                make_world(
                    place, seed, tasks.worlds.entities, tasks.worlds.questions, tasks.worlds.taught
                )
            yield load_world(place, tasks.split)


def _narrowed(found: Benchmark, tasks: Tasks) -> Benchmark:
    if not found.tasks:
        raise UsageError(f"'{found.name}' holds no task", next(iter(found.skipped), ""))
    kept = [task for task in found.tasks if not tasks.kinds or task.kind in tasks.kinds]
    if not kept:
        kinds = ", ".join(sorted({task.kind for task in found.tasks if task.kind})) or "none"
        raise UsageError(f"'{found.name}' holds no task of these kinds", f"it has: {kinds}")
    chosen = _mixed(kept, tasks.unanswerable, tasks.limit)
    if not chosen:
        raise UsageError(
            f"'{found.name}' holds no question with an answer", "leave tasks.unanswerable at 1"
        )
    return replace(found, tasks=chosen)


def _mixed(tasks: Sequence[Task], most: float, limit: int) -> tuple[Task, ...]:
    """Tasks in their order, as `spread` has them, at most that share of them without an answer."""
    without = [task for task in tasks if task.answerable is False]
    if len(without) <= most * len(tasks):
        return spread(tasks, limit)
    others = [task for task in tasks if task.answerable is not False]
    room = int(most * min(limit or len(tasks), len(others) / (1 - most)))
    kept = {id(task) for task in spread(others, limit and limit - room)}
    kept |= {id(task) for task in (spread(without, room) if room else ())}
    return tuple(task for task in tasks if id(task) in kept)


def require_apart(asked: Sequence[Benchmark], held: Sequence[Benchmark]) -> None:
    """Refuse sets that share a name, and questions that are both trained on and measured on.

    Raises:
        UsageError: names the set or the question.
    """
    for sets in (asked, held):
        names = [one.name for one in sets]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UsageError(f"two sets are named '{twice}'", "rename one of the files")
    known = {_question(task) for one in asked for task in one.tasks}
    for one in held:
        shared = [task for task in one.tasks if _question(task) in known]
        if shared and not _worlds_apart(one, asked):
            raise UsageError(
                f"{len(shared)} questions of '{one.name}' are trained on and validated on, the first is "
                f"'{shared[0].id}'",
                "give validation.tasks other sets, or split: test (a file of questions has no parts)",
            )


def _question(task: Task) -> str:
    return " ".join(task.question.lower().split())


def _worlds_apart(held: Benchmark, asked: Sequence[Benchmark]) -> bool:
    """Whether a set is a world that no training set is: names recur between worlds, facts do not."""
    return held.name.startswith("world-") and held.name not in {one.name for one in asked}
