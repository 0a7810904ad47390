"""Demonstrations: episodes of the scripted expert on training splits, through the real tools."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from agent.corpus_index import index_of
from agent.episode import Budgets, Episode
from agent.formats import TagsFormat
from agent.graph import Setup
from agent.policies.chat import ChatTemplate
from agent.rollout import rollout
from agent.settings import SearchSettings
from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.benchmarks import Benchmark, DataFolder, load
from eval.benchmarks.world import load_world
from eval.fictional.make import make_world
from eval.metrics import exact_match
from rl.guidance.careless import DecliningPolicy, GuessingPolicy
from rl.guidance.expert import ExpertPolicy, Passage
from rl.recipe import Demonstrations, Habits, Worlds
from tools.base import Toolbox
from tools.judge import JudgeTool
from tools.search.index import Index
from tools.search.tool import SearchTool

log = logging.getLogger(__name__)
Indexer = Callable[[Benchmark], Path]


def demonstrate(
    recipe: Demonstrations,
    data: DataFolder,
    template: ChatTemplate,
    indexer: Indexer,
    search: SearchSettings,
    seed: int,
) -> Iterator[Trajectory]:
    """Play every source of the recipe and yield the episodes worth learning from.

    Args:
        recipe: sources and shares.
        data: where the benchmarks are.
        template: of the policy to be trained, so that the tokens are its own.
        indexer: gives the index folder of a benchmark, building it when needed.
        search: how the search tool reads it, as the trained policy will meet it.
        seed: of the order and of the misleading queries.
    """
    for name, times in recipe.sources.items():
        benchmark = load(name, data, "train")
        asked, unanswerable = _by_answerable(benchmark.tasks)
        episodes = [
            *plays(asked, times, seed),
            *plays(unanswerable, recipe.unanswerable.get(name, times), seed),
        ]
        yield from kept(benchmark, episodes, recipe, template, indexer, search, seed)


def demonstrate_worlds(
    recipe: Demonstrations, folder: Path, template: ChatTemplate, search: SearchSettings, seed: int
) -> Iterator[Trajectory]:
    """The same on fictional worlds, which are made in `folder` with lexical indexes.

    Args:
        recipe: its `worlds` say how many and how large.
        folder: where they are made; one that is there already is used.
        template, search, seed: as for `demonstrate`.
    """
    lexical = search.model_copy(update={"mode": "lexical"})
    for benchmark in chain.from_iterable(worlds_of(row, folder) for row in recipe.worlds):
        episodes = list(plays(benchmark.tasks, 1, seed))
        yield from kept(benchmark, episodes, recipe, template, lexical_index, lexical, seed)


def worlds_of(worlds: Worlds, folder: Path) -> Iterator[Benchmark]:
    """The training part of each world, made in `folder` when it is not there."""
    for seed in range(worlds.first_seed, worlds.first_seed + worlds.count):
        place = folder / worlds.folder(seed)
        if not (place / "world.json").is_file():
            make_world(place, seed, worlds.entities, worlds.questions, worlds.taught)
        yield load_world(place, "train")


def lexical_index(benchmark: Benchmark) -> Path:
    """The lexical index beside a world's corpus, built when it is not there."""
    [corpus] = benchmark.corpus
    return index_of((corpus,), corpus.parent / "indexes", mode="lexical")


def kept(
    benchmark: Benchmark,
    episodes: Sequence[Episode],
    recipe: Demonstrations,
    template: ChatTemplate,
    indexer: Indexer,
    search: SearchSettings,
    seed: int,
) -> Iterator[Trajectory]:
    """Play episodes of one set and keep the ones worth learning from, and those that show a habit."""
    folder = indexer(benchmark)
    for player, some in _by_habit(episodes, recipe.habits, seed).items():
        played = asyncio.run(
            _played(player, benchmark, some, recipe, template, folder, search, seed)
        )
        good = list(select(played, recipe.abstain_share)) if player is ExpertPolicy else played
        log.info("%s: %d of %d demonstrations kept", benchmark.name, len(good), len(played))
        yield from (replace(one, group=one.task.id) for one in good)


def _by_habit(
    episodes: Sequence[Episode], habits: Habits, seed: int
) -> dict[type[ExpertPolicy], list[Episode]]:
    """Who plays which episodes; each draws its player by seed."""
    out: dict[type[ExpertPolicy], list[Episode]] = {}
    for episode in episodes:
        drawn = random.Random(f"{seed}:{episode.task.id}:{episode.seed}").random()
        if drawn < habits.guess:
            player: type[ExpertPolicy] = GuessingPolicy
        else:
            player = DecliningPolicy if drawn < habits.guess + habits.decline else ExpertPolicy
        out.setdefault(player, []).append(episode)
    return out


async def _played(
    player: type[ExpertPolicy],
    benchmark: Benchmark,
    episodes: Sequence[Episode],
    recipe: Demonstrations,
    template: ChatTemplate,
    folder: Path,
    search: SearchSettings,
    seed: int,
) -> list[Trajectory]:
    index = Index.open(folder)
    passages = {p.id: Passage(p.title, p.text) for p in index.passages()}
    shown = recipe.shown or (search.k,)
    groups: dict[tuple[int, int], list[Episode]] = {}
    for number, episode in enumerate(episodes):
        groups.setdefault((episode.seed, shown[number % len(shown)]), []).append(episode)
    played: list[Trajectory] = []
    for (lap, k), some in sorted(groups.items()):
        policy = player(template, benchmark.tasks, passages, recipe.misleading, seed * 1000 + lap)
        tools = Toolbox([SearchTool(index, k, search.passage_chars, search.mode), JudgeTool()])
        setup = Setup(policy, TagsFormat(tools), tools, Budgets(turns=12))
        mine: AsyncIterator[Trajectory] = rollout(some, setup, concurrency=4)
        played += [trajectory async for trajectory in mine]
    return played


def _by_answerable(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    unanswerable = [task for task in tasks if task.answerable is False]
    return [task for task in tasks if task.answerable is not False], unanswerable


def plays(tasks: Sequence[Task], times: float, seed: int) -> Iterator[Episode]:
    """Each task `times` times; a fraction takes that share of the tasks, by seed."""
    whole, part = int(times), times - int(times)
    for lap in range(whole):
        yield from (Episode(task, seed=lap) for task in tasks)
    chance = random.Random(seed)
    yield from (Episode(task, seed=whole) for task in tasks if chance.random() < part)


def select(trajectories: Sequence[Trajectory], abstain_share: float) -> Iterator[Trajectory]:
    """Right answers, right abstentions, and some abstentions where the search found nothing."""
    allowed = abstain_share * len(trajectories)
    counts: Counter[str] = Counter()
    for trajectory in sorted(trajectories, key=lambda t: (t.task.id, t.seed)):
        kind = _kind(trajectory)
        counts[kind] += 1
        if kind in ("right", "unanswerable") or (kind == "gave_up" and counts[kind] <= allowed):
            yield trajectory


def _kind(trajectory: Trajectory) -> str:
    task = trajectory.task
    if trajectory.status is Status.ABSTAINED:
        if task.answerable is None:
            return "unknown"
        if not task.answerable:
            return "unanswerable"
        return "unread" if _read_all(trajectory) else "gave_up"
    if trajectory.status is Status.ANSWERED and exact_match(trajectory.answer, task.answers):
        return "right"
    return "wrong"


def _read_all(trajectory: Trajectory) -> bool:
    """Whether all evidence was shown, so that abstaining would be the wrong lesson."""
    return set(trajectory.task.evidence) <= {source.id for source in trajectory.sources}
