"""Collection over Ray: each actor has its own engine and tools; the driver alone writes the store.

The driver hands out one episode at a time, so that a slow one holds nobody, and takes back whole
trajectories. A cluster that is running is joined through RAY_ADDRESS; else one is started here and
ended afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from agent.graph import build_graph
from agent.policies.registry import policy_of
from agent.rollout import run_episode
from agent.settings import Settings
from agent.store import TrajectoryStore
from agent.trajectory import Trajectory
from eval.benchmarks import Benchmark
from kg.errors import MissingExtraError, PolicyUnavailableError, TurnwiseError
from rl.collect import (
    Advance,
    CollectReport,
    CollectRequest,
    Notify,
    Plan,
    Tally,
    clean,
    journal,
    make_plan,
    missing_of,
)


class Worker:
    """What runs in an actor: a policy, and the plans of every set under it."""

    def __init__(
        self,
        sets: Sequence[Benchmark],
        request: CollectRequest,
        settings: Settings,
        path: Path,
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._path = path
        self._policy = policy_of(settings)
        self._plans = [
            make_plan(one, self._policy, request, settings, lambda line: None) for one in sets
        ]
        self._graphs: list[Any] = []
        self._stack = AsyncExitStack()

    async def start(self) -> list[Plan]:
        """Open the checkpoints; gives the plans without what cannot leave the process."""
        from agent.checkpoints import checkpoints

        saver = await self._stack.enter_async_context(checkpoints(self._path))
        await saver.conn.execute("PRAGMA synchronous=NORMAL")
        self._graphs = [build_graph(plan.setup.tools, saver) for plan in self._plans]
        return [Plan(p.name, None, p.episodes, p.skipped) for p in self._plans]  # type: ignore[arg-type]

    async def play(self, plan: int, number: int) -> str:
        """Run one episode; gives its trajectory as JSON."""
        one = self._plans[plan]
        done = await run_episode(one.episodes[number], one.setup, self._graphs[plan])
        return json.dumps(done.to_dict())

    async def stop(self) -> None:
        """Release the engine."""
        await self._stack.aclose()
        await self._policy.aclose()


def play(
    sets: Sequence[Benchmark],
    request: CollectRequest,
    settings: Settings,
    store: TrajectoryStore,
    notify: Notify,
    advance: Advance,
) -> tuple[CollectReport, list[Plan]]:
    """Carry out a collection over `request.actors` actors; see `rl.collect.carry_out`. The plans are
    without their setups, which cannot leave an actor.

    Raises:
        MissingExtraError: Ray is not installed.
        PolicyUnavailableError: an actor's engine does not start, or an actor died.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "collecting over actors") from error
    path = journal(store, settings, notify)
    with _cluster(request.actors), _told(ray):
        notify(f"starting {request.actors} actors")
        actors = _start(ray, sets, request, settings, path)
        plans = ray.get([actor.start.remote() for actor in actors])[0]
        missing = missing_of(plans, store)
        begun = clean(path, plans, missing)
        tally = Tally(plans, sum(map(len, missing)), begun, advance)
        for done in _stream(ray, actors, _jobs(plans, missing), request.concurrency):
            tally.add(done, store.add(done))
        ray.get([actor.stop.remote() for actor in actors])
    clean(path, plans, [[] for _ in plans])
    return tally.report(), plans


def _start(
    ray: Any,
    sets: Sequence[Benchmark],
    request: CollectRequest,
    settings: Settings,
    path: Path,
) -> list[Any]:
    """One actor an engine, on a GPU of its own where the cluster has enough."""
    gpus = int(ray.cluster_resources().get("GPU", 0) >= request.actors)
    threads = max(1, (os.cpu_count() or 1) // request.actors)
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=request.concurrency + 1)(Worker)
    return [kind.remote(sets, request, settings, path, threads) for _ in range(request.actors)]


def _jobs(plans: Sequence[Plan], missing: Sequence[Sequence[Any]]) -> Iterator[tuple[int, int]]:
    """Plan and number of every episode to run, group after group."""
    for index, (plan, episodes) in enumerate(zip(plans, missing, strict=True)):
        wanted = {episode.meta["id"] for episode in episodes}
        for number, episode in enumerate(plan.episodes):
            if episode.meta["id"] in wanted:
                wanted.remove(episode.meta["id"])
                yield index, number


def _stream(
    ray: Any, actors: Sequence[Any], jobs: Iterator[tuple[int, int]], concurrency: int
) -> Iterator[Trajectory]:
    """Trajectories as they finish; each actor always has `concurrency` episodes while there are any."""
    running: dict[Any, Any] = {}

    def give(actor: Any) -> None:
        job = next(jobs, None)
        if job is not None:
            running[actor.play.remote(*job)] = actor

    for _ in range(concurrency):
        for actor in actors:
            give(actor)
    while running:
        [ready], _ = ray.wait(list(running), num_returns=1)
        give(running.pop(ready))
        yield Trajectory.from_dict(json.loads(ray.get(ready)))


@contextmanager
def _cluster(actors: int) -> Iterator[None]:
    """A Ray cluster: the one of RAY_ADDRESS, or one of this machine for as long as it is needed."""
    import ray

    own = not os.environ.get("RAY_ADDRESS") and not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=max(actors, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )
    elif not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        if own:
            ray.shutdown()


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """Ray's wrapping of an actor's error taken off."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, TurnwiseError):
            raise cause from None
        raise PolicyUnavailableError(f"an actor failed: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TurnwiseError):
            raise cause from None
        first = str(error).strip().split("\n")[0]
        raise PolicyUnavailableError(
            f"an actor died: {first}", "run the same command again to go on from here"
        ) from error
