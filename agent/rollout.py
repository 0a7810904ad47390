"""Many episodes at once; finished trajectories come out as they finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.types import Durability

from agent.episode import Episode
from agent.graph import Graph, Setup, State, build_graph
from agent.misleading import TOOL
from agent.trajectory import Status, StopReason, Trajectory
from tools.base import MISLED, Toolbox

log = logging.getLogger(__name__)
_RECURSION = 10_000  # LangGraph's own step limit; ours are the budgets


@dataclass(frozen=True)
class Play:
    """One episode to be played, in its setting."""

    setup: Setup
    episode: Episode


class Graphs:
    """The compiled state machine of each set of tools.

    Args:
        checkpointer: of all of them; see `build_graph`.
    """

    def __init__(self, checkpointer: Any = None) -> None:
        self._checkpointer = checkpointer
        # with its toolbox, so that the key stays its own
        self._found: dict[int, tuple[Toolbox, Graph]] = {}

    def of(self, tools: Toolbox) -> Graph:
        """Compiled once."""
        if id(tools) not in self._found:
            self._found[id(tools)] = (tools, build_graph(tools, self._checkpointer))
        return self._found[id(tools)][1]


async def run_episode(episode: Episode, setup: Setup, graph: Graph) -> Trajectory:
    """Run one episode to its end; a crash in it becomes a failed trajectory.

    Without a checkpointer nothing is kept on the way. With one, an episode that has an `id` in its
    meta goes on from where a killed process left it, and each finished step of it is on disk.
    """
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    config: RunnableConfig = {"recursion_limit": _RECURSION}
    given: State | None = {"episode": episode}
    if graph.checkpointer:
        config["configurable"] = {"thread_id": episode.meta["id"]}
        begun = (await graph.aget_state(config)).values.get("episode")
        if begun is not None and begun.status is Status.FAILED:  # asked again from the beginning
            await graph.checkpointer.adelete_thread(episode.meta["id"])  # type: ignore[union-attr]
            begun = None
        if begun is not None and begun.status is not None:
            return record(begun, setup, created)
        given = given if begun is None else None
    try:
        durability: Durability | None = "sync" if graph.checkpointer else None
        state = await graph.ainvoke(given, config, context=setup, durability=durability)
        finished: Episode = state["episode"]
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        debug = log.isEnabledFor(logging.DEBUG)
        log.error("episode of task %s failed: %s", episode.task.id, cause, exc_info=debug)
        finished = episode.end(Status.FAILED, StopReason.POLICY_ERROR, error=cause)
    return record(finished, setup, created)


def record(episode: Episode, setup: Setup, created: str) -> Trajectory:
    """The trajectory of a finished episode."""
    versions = {"format": setup.format.name, "rule": setup.rule.value, **setup.tools.versions}
    if episode.misled:
        versions[MISLED] = TOOL
    sampling = replace(setup.sampling, seed=episode.seed)
    return episode.to_trajectory(setup.policy_id, sampling, versions, created)


async def rollout(
    episodes: Iterable[Episode], setup: Setup, concurrency: int = 8, checkpointer: Any = None
) -> AsyncGenerator[Trajectory]:
    """`rollouts` of episodes that share a setup."""
    stream = rollouts((Play(setup, episode) for episode in episodes), concurrency, checkpointer)
    async with aclosing(stream):
        async for trajectory in stream:
            yield trajectory


async def rollouts(
    plays: Iterable[Play], concurrency: int = 8, checkpointer: Any = None
) -> AsyncGenerator[Trajectory]:
    """Run episodes, at most `concurrency` at a time, yielding each as it finishes.

    Closing the iterator early cancels what still runs.

    Args:
        plays: taken as there is room.
        concurrency: episodes at once.
        checkpointer: a LangGraph saver; see `run_episode`.
    """
    source, graphs = iter(plays), Graphs(checkpointer)
    running: set[asyncio.Task[Trajectory]] = set()
    try:
        while True:
            for play in _take(source, concurrency - len(running)):
                graph = graphs.of(play.setup.tools)
                running.add(asyncio.create_task(run_episode(play.episode, play.setup, graph)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _take(source: Iterator[Play], count: int) -> Iterator[Play]:
    for _ in range(count):
        try:
            yield next(source)
        except StopIteration:
            return
