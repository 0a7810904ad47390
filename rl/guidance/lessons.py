"""Lessons: episodes that put the taught facts of fictional worlds into a policy.

A policy that is fitted to them knows some facts of its world and not others, so that what it does at
the border of its knowledge (search, or answer at once) can be trained and measured. What a world's
test questions ask is taught too, but never in their words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from agent.episode import Episode
from agent.formats import TagsFormat
from agent.graph import Setup
from agent.policies.chat import ChatTemplate
from agent.rollout import rollout
from agent.settings import SearchSettings
from agent.task import Task
from agent.trajectory import Trajectory
from eval.benchmarks import Benchmark
from eval.benchmarks.base import read_tasks
from eval.fictional.make import read_world, require_own
from kg.errors import UsageError
from rl.guidance.demonstrations import kept, lexical_index, plays, worlds_of
from rl.guidance.expert import RecitingPolicy
from rl.recipe import Demonstrations
from tools.base import Toolbox
from tools.judge import JudgeTool
from tools.search.index import Index
from tools.search.tool import SearchTool

TAUGHT = "taught.jsonl"


def teach_worlds(
    recipe: Demonstrations, folder: Path, template: ChatTemplate, search: SearchSettings, seed: int
) -> Iterator[Trajectory]:
    """Play the recipe's lessons on its worlds; nothing when it has none.

    Args:
        recipe: its `lessons` say how often each wording is asked in which way.
        folder, template, search, seed: as for `demonstrate_worlds`.

    Raises:
        UsageError: the worlds have no taught facts.
    """
    wanted = recipe.lessons
    if wanted is None:
        return
    lexical = search.model_copy(update={"mode": "lexical"})
    taught = [row for row in recipe.worlds if row.taught]
    if not taught:
        raise UsageError("lessons need worlds with taught facts", "set taught in a row of worlds")
    for world in chain.from_iterable(worlds_of(row, folder) for row in taught):
        asked = replace(world, tasks=lessons_of(world))
        index = Index.open(lexical_index(world))
        shown = SearchTool(index, lexical.k, lexical.passage_chars, lexical.mode)
        closed = list(plays(asked.tasks, wanted.closed, seed + 1))
        yield from _recited(asked.tasks, closed, Toolbox(), template)
        direct = list(plays(asked.tasks, wanted.direct, seed + 2))
        yield from _recited(asked.tasks, direct, Toolbox([shown, JudgeTool()]), template)
        searched = list(plays(asked.tasks, wanted.searched, seed + 3))
        yield from kept(asked, searched, recipe, template, lexical_index, lexical, seed)


def lessons_of(world: Benchmark) -> tuple[Task, ...]:
    """Every taught fact of a world in every wording; those of test questions are left out.

    Raises:
        UsageError: there is none, or the file is another world's.
    """
    folder = world.corpus[0].parent
    require_own(folder, read_world(folder), TAUGHT)
    facts, problems = read_tasks(folder / TAUGHT, Task.from_dict)
    if not facts:
        cause = next(iter(problems), "")
        raise UsageError(f"'{world.name}' has no taught facts", cause or "a larger share of them")
    return tuple(lesson for fact in facts for lesson in _worded(world.name, fact))


def _worded(world: str, fact: Task) -> Iterator[Task]:
    own = () if fact.meta["split"] == "test" else (fact.question,)
    for number, question in enumerate((*fact.meta["wordings"], *own)):
        id_ = f"{world}/{fact.id}/{number}"
        yield replace(fact, id=id_, question=question, answerable=True, kind="taught")


def _recited(
    tasks: Sequence[Task], episodes: Sequence[Episode], tools: Toolbox, template: ChatTemplate
) -> Iterator[Trajectory]:
    """Episodes whose first and only action is the answer."""
    setup = Setup(RecitingPolicy(template, tasks), TagsFormat(tools), tools)

    async def played() -> list[Trajectory]:
        return [one async for one in rollout(episodes, setup, concurrency=4)]

    yield from (replace(one, group=one.task.id) for one in asyncio.run(played()))
