"""What the state machine costs: tokens a second of whole episodes over the bare engine.

Episodes of the bundled library's questions run through the graph with a stub search tool that
answers after 0 or 200 ms. The bare engine then replays the very same requests (same prompts, same
stop strings, greedy, so the same tokens), each episode's one after the other, without graph, parsing
or tools. Both in one process, alternating, each twice after a first pass that is not counted, with
and without the engine's reuse of shared prefixes. Time that is not the engine's is taken turn by turn
in those passes.
A third figure plays the recorded completions back at no cost, once through LangGraph and once
through a plain loop over the same node functions: the difference is LangGraph's own share.

    python benchmarks/rollout.py [--engine vllm|transformers] [--policy default] [--episodes 64]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # beside this file lies one named as a package

from agent.episode import Episode  # noqa: E402
from agent.graph import State, finish_node, next_node, policy_node, repair_node, tool_node  # noqa: E402
from agent.policies.base import Completion, Policy, Request  # noqa: E402
from agent.policies.catalog import resolve  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.session import make_setup  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from agent.task import Task  # noqa: E402
from agent.trajectory import Trajectory  # noqa: E402
from eval.benchmarks import DataFolder, load  # noqa: E402
from kg.library.load import load_library  # noqa: E402
from kg.library.passages import passages  # noqa: E402
from tools.base import Observation, Source, Tool, Toolbox, ToolContext  # noqa: E402
from tools.judge import JudgeTool  # noqa: E402
from tools.search.tool import SearchArguments, SearchTool  # noqa: E402


class StubSearch(Tool):
    """Gives passages of the library without searching, after a set wait."""

    name: ClassVar[str] = "search"
    family: ClassVar[str] = "search"
    description: ClassVar[str] = SearchTool.description
    example: ClassVar[str] = SearchTool.example
    Arguments: ClassVar[type[BaseModel]] = SearchArguments
    body: ClassVar[str] = "query"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rows = passages(load_library())

    async def run(self, arguments: SearchArguments, context: ToolContext) -> Observation:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        first = sum(arguments.query.encode()) % (len(self.rows) - 3)
        rows = self.rows[first : first + 3]
        return Observation(
            self.name, sources=tuple(Source(r["id"], r["title"], r["text"][:500]) for r in rows)
        )


@dataclass
class Recorder(Policy):
    """Passes requests on to an engine and keeps them, with the engine's time for each."""

    policy: Policy
    calls: list[tuple[Request, Completion]] = field(default_factory=list)
    seconds: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        told = self.policy
        self.name, self.version, self.engine = told.name, told.version, told.engine
        self.template, self.context_length = told.template, told.context_length
        self.config_version = told.config_version
        self.native_tools = told.native_tools

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        began = time.perf_counter()
        done = await self.policy.generate(requests)
        took = time.perf_counter() - began
        self.seconds |= {request.token_ids: took for request in requests}
        self.calls += zip(requests, done, strict=True)
        return done


@dataclass
class Player(Policy):
    """Gives recorded completions back at once."""

    recorded: Recorder

    def __post_init__(self) -> None:
        self.name, self.version = "player", "1"
        self.template = self.recorded.template
        self.context_length = self.recorded.context_length
        self.answers = {request.token_ids: done for request, done in self.recorded.calls}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.answers[request.token_ids] for request in requests]


def count(calls: Sequence[tuple[Request, Completion]]) -> int:
    return sum(len(done.token_ids) for _, done in calls)


async def through_graph(
    policy: Policy, tasks: Sequence[Task], seconds: float, concurrency: int
) -> tuple[float, list[Trajectory]]:
    """Wall time of the episodes, and the episodes."""
    tools = Toolbox([StubSearch(seconds), JudgeTool()])
    setup = make_setup(load_settings(), policy, tools)
    began = time.perf_counter()
    done = [t async for t in rollout([Episode(task) for task in tasks], setup, concurrency)]
    return time.perf_counter() - began, done


async def bare(engine: Policy, episodes: Sequence[Sequence[Request]], concurrency: int) -> float:
    """Wall time of the same requests without the graph."""
    gate = asyncio.Semaphore(concurrency)

    async def one(requests: Sequence[Request]) -> None:
        async with gate:
            for request in requests:
                await engine.generate([replace(request, on_text=None)])

    began = time.perf_counter()
    await asyncio.gather(*(one(requests) for requests in episodes))
    return time.perf_counter() - began


def by_episode(recorder: Recorder, episodes: Sequence[Trajectory]) -> list[list[Request]]:
    """The recorded requests of each episode, in order."""
    requests = {request.token_ids: request for request, _ in recorder.calls}
    return [[requests[tuple(t.prompt_of(turn).tolist())] for turn in t.turns] for t in episodes]


def own_seconds(recorder: Recorder, episodes: Sequence[Trajectory], wait: float) -> list[float]:
    """Each turn's time outside the engine, the stub's wait subtracted where a search ran."""
    out = []
    for t in episodes:
        for turn in t.turns:
            engine = recorder.seconds[tuple(t.prompt_of(turn).tolist())]
            waited = wait * (turn.observation is not None and turn.observation.tool == "search")
            out.append(turn.policy_seconds + turn.tool_seconds - engine - waited)
    return out


class _Loop:
    """A stand-in for LangGraph's runtime: the context, and a writer that drops events."""

    def __init__(self, setup: Any) -> None:
        self.context = setup
        self.stream_writer = lambda event: None


async def plain_loop(policy: Policy, tasks: Sequence[Task]) -> float:
    """Wall time of the same nodes driven by a loop instead of LangGraph."""
    tools = Toolbox([StubSearch(0), JudgeTool()])
    runtime: Any = _Loop(make_setup(load_settings(), policy, tools))
    families = {tool.name: tool.family for tool in tools}
    began = time.perf_counter()
    for task in tasks:
        state: State = {"episode": Episode(task)}
        while True:
            state = await policy_node(state, runtime)
            route = next_node(state["episode"], families)
            if route == "finish":
                await finish_node(state, runtime)
                break
            if route != "policy":
                state = await (repair_node if route == "repair" else tool_node)(state, runtime)
    return time.perf_counter() - began


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--policy", default="default")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--reuse", nargs="+", default=["yes", "no"], choices=["yes", "no"])
    parser.add_argument("--tool-ms", type=float, nargs="+", default=[0, 200])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/rollout.json"))
    args = parser.parse_args()
    data = DataFolder(Path(), load_settings().benchmarks_dir)  # the library reads no file
    tasks = [*load("library", data, "train").tasks, *load("library", data, "test").tasks]
    folder = resolve(args.policy, load_settings().models_dir)
    rows = []
    for reuse in (name == "yes" for name in args.reuse):
        engine = make_engine(args.engine, folder, reuse)
        await through_graph(engine, tasks[:4], 0, 4)  # the first requests warm the engine up
        for concurrency in args.concurrency:
            some = tasks[: max(4, min(args.episodes, 8 * concurrency))]
            for wait in (ms / 1000 for ms in args.tool_ms):
                row = await measure(engine, some, wait, concurrency)
                rows.append({"reuse": reuse, **row})
                print(json.dumps(rows[-1]), flush=True)
        await engine.aclose()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))


def make_engine(name: str, folder: Path, reuse: bool, dtype: str = "float32") -> Policy:
    if name == "transformers":
        from agent.policies.transformers import TransformersPolicy

        return TransformersPolicy(folder, max_batch=64, reuse=reuse, dtype=dtype)
    from agent.policies.vllm import VllmPolicy

    return VllmPolicy(folder, prefix_caching=reuse, dtype=dtype)


async def measure(
    engine: Policy, tasks: Sequence[Task], wait: float, concurrency: int
) -> dict[str, float]:
    """One row: after a first pass, bare engine and graph alternate twice; the better time counts."""
    recorder = Recorder(engine)
    _, episodes = await through_graph(recorder, tasks, wait, concurrency)
    requests, tokens = by_episode(recorder, episodes), count(recorder.calls)
    bare_times, graph_times, own = [], [], []
    for _ in range(2):
        bare_times.append(await bare(engine, requests, concurrency))
        timed = Recorder(engine)
        seconds, done = await through_graph(timed, tasks, wait, concurrency)
        graph_times.append(seconds)
        own += own_seconds(timed, done, wait)
    player = Player(recorder)
    langgraph, _ = await through_graph(player, tasks, 0, 1)
    loop = await plain_loop(player, tasks)
    turns = sum(len(t.turns) for t in episodes)
    return {
        "tool_ms": wait * 1000,
        "concurrency": concurrency,
        "episodes": len(tasks),
        "tokens": tokens,
        "graph_tokens_per_s": round(tokens / min(graph_times), 1),
        "bare_tokens_per_s": round(tokens / min(bare_times), 1),
        "ratio": round(min(bare_times) / min(graph_times), 3),
        "p95_non_engine_ms_per_turn": round(1000 * float(np.percentile(own, 95)), 2),
        "langgraph_ms_per_turn": round(1000 * (langgraph - loop) / turns, 2),
        "all_own_ms_per_turn": round(1000 * langgraph / turns, 2),
    }


if __name__ == "__main__":
    asyncio.run(main())
