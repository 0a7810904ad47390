"""Question sets through the agent, into one folder that survives a kill.

Running the same command again goes on where it stopped, and asks failed questions again. Scores are
made afterwards, by `eval.score`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from agent.episode import Episode
from agent.graph import Setup
from agent.policies.base import Policy
from agent.policies.registry import policy_of
from agent.rollout import rollout
from agent.session import make_setup
from agent.settings import Settings
from agent.store import TrajectoryStore
from agent.task import Task
from agent.toolbox import open_tools
from agent.trajectory import Status, Trajectory
from eval.analyses.given import Condition, given, require_some
from eval.benchmarks import Benchmark, DataFolder, load
from eval.cache import EpisodeCache
from eval.failures import Failures
from eval.folder import (
    RunHeader,
    SetHeader,
    claim,
    computed_by,
    digest_of,
    finish,
    group_of,
    keep_failed,
    open_store,
    packages,
    shape_of,
)
from eval.metrics import scorer
from eval.revision import source
from kg import lock
from kg.errors import UsageError

Notify = Callable[[str], None]
Advance = Callable[[str, int, int], None]


class EvalRequest(BaseModel):
    """What to evaluate.

    Attributes:
        benchmarks: names or files of questions.
        data: where their files are; see `eval.data.DataFolder`.
        limit: questions a set, spread evenly over it; 0 for all.
        samples: episodes a question; above 1 the temperature must be above 0.
        scorer: instead of each set's own.
        given: what is told with each question; see `eval.analyses.given`.
        concurrency: episodes at once.
        cache: take episodes of earlier runs that are the same in everything.
    """

    model_config = ConfigDict(frozen=True)

    benchmarks: tuple[str, ...]
    data: str = ""
    limit: int = Field(0, ge=0)
    samples: int = Field(1, ge=1)
    scorer: str = ""
    given: Condition = ""
    concurrency: int = Field(8, ge=1)
    cache: bool = True


@dataclass(frozen=True)
class _Set:
    """A question set that is ready to run."""

    benchmark: Benchmark
    tasks: tuple[Task, ...]
    setup: Setup
    corpus: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def header(self) -> SetHeader:
        return SetHeader(
            name=self.name,
            scorer=self.benchmark.scorer,
            tasks=len(self.tasks),
            skipped=list(self.benchmark.skipped),
            tools=dict(self.setup.tools.versions),
            corpus=_resolved(self.corpus),
            other_corpus=_resolved(self.corpus) != _resolved(self.benchmark.corpus),
            digest=digest_of(self.tasks),
            data=self.benchmark.origin,
        )


@dataclass(frozen=True)
class _Run:
    """What the sets of a run share."""

    request: EvalRequest
    settings: Settings
    store: TrajectoryStore
    failures: Failures
    advance: Advance


def run(
    request: EvalRequest,
    settings: Settings,
    out: Path,
    notify: Notify = lambda line: None,
    advance: Advance = lambda stage, done, total: None,
) -> RunHeader:
    """Carry out an evaluation, or go on with one.

    Args:
        request: what to evaluate.
        settings: policy, tools and budgets, as for `agent ask`.
        out: folder of the run.
        notify: gets one line a stage (download, index build).
        advance: gets set name, finished episodes and their total.

    Raises:
        UsageError: unknown names, no question, or `out` holds another run, or another process is
            evaluating there.
        PolicyUnavailableError: the policy cannot be had.
        PolicyFailedError: it failed too often, see `eval.failures`; episodes that had begun by then
            are finished and kept.
    """
    if request.samples > 1 and settings.sampling.temperature == 0:
        raise UsageError("several samples at temperature 0 are all the same", "--temperature 1.0")
    loaded = [_load(name, request, settings) for name in request.benchmarks]
    names = [benchmark.name for benchmark in loaded]
    if len(set(names)) < len(names):
        raise UsageError(f"a benchmark is named twice: {', '.join(names)}")
    return asyncio.run(_run(loaded, request, settings, out, notify, advance))


async def _run(
    loaded: Sequence[Benchmark],
    request: EvalRequest,
    settings: Settings,
    out: Path,
    notify: Notify,
    advance: Advance,
) -> RunHeader:
    policy = policy_of(settings, notify)
    try:
        sets = [
            _Set(
                b,
                spread(b.tasks, request.limit),
                setup_of(settings, policy, b, notify),
                settings.corpus or b.corpus,
            )
            for b in loaded
        ]
        busy = f"another process is evaluating in {out}"
        with lock.held(out / lock.LOCK, busy, "wait for it, or choose another --out"):
            header = claim(
                out, _header(sets, request, settings), [(s.name, t) for s in sets for t in s.tasks]
            )
            with open_store(out) as store:
                failures = Failures(out)
                shared = _Run(request, settings, store, failures, advance)
                for one in sets:
                    await _play(one, shared)
                    failures.check()
                failures.settle(any(status != Status.FAILED for _, status in store.keys().values()))
            if failures.asked or not header.finished:
                header = finish(out, header, _now())
            if failures.failed:
                notify(f"{failures.failed} of {failures.asked} episodes failed: see the report")
        return header
    finally:
        await policy.aclose()


async def _play(one: _Set, shared: _Run) -> None:
    """Run what a set still lacks."""
    request, store = shared.request, shared.store
    total = len(one.tasks) * request.samples
    with ExitStack() as stack:
        cache = EpisodeCache.open(one.setup, shared.settings) if request.cache else None
        if cache is not None:
            stack.callback(cache.close)
        missing = _uncached(_missing(one, shared), one.name, store, cache)
        done = total - len(missing)
        shared.advance(one.name, done, total)
        wanted = takewhile(lambda episode: not shared.failures.over, missing)
        async for found in rollout(wanted, one.setup, request.concurrency):
            await asyncio.to_thread(_keep, found, one.name, store, cache)
            done += 1
            shared.advance(one.name, done, total)
            shared.failures.note(one.name, found)


def _keep(found: Trajectory, name: str, store: TrajectoryStore, cache: EpisodeCache | None) -> None:
    store.add(replace(found, group=group_of(name, found.task)))
    if cache is not None:
        cache.add(found)


def _missing(one: _Set, shared: _Run) -> list[Episode]:
    """Episodes that are not in the store; failed ones are removed from it and asked again."""
    store, first = shared.store, shared.settings.seed
    known = store.keys()
    out, failed = [], []
    for task in one.tasks:
        for seed in range(first, first + shared.request.samples):
            id, status = known.get((group_of(one.name, task), seed), ("", ""))
            if status == Status.FAILED:
                failed.append(id)
            if status in ("", Status.FAILED):
                out.append(Episode(task, seed=seed))
    if failed:
        keep_failed(shared.failures.out, one.name, map(store.get, failed))
        store.delete(failed)
    return out


def _uncached(
    episodes: Sequence[Episode], name: str, store: TrajectoryStore, cache: EpisodeCache | None
) -> list[Episode]:
    """Copy what the cache knows into the store; gives the rest."""
    rest = []
    for episode in episodes:
        found = cache.get(episode) if cache is not None else None
        if found is None or not store.add(replace(found, group=group_of(name, episode.task))):
            rest.append(episode)
    return rest


def spread(tasks: Sequence[Task], limit: int) -> tuple[Task, ...]:
    """At most `limit` tasks in their order, evenly over the set: that of many goes by article or kind.

    Nested: a larger limit keeps the tasks of a smaller one. Halves, then quarters, then eighths of the
    set begin the next task (van der Corput's sequence), so that gaps differ by a factor of 2 at most
    before rounding, and not at all at a power of two.
    """
    if not limit or limit >= len(tasks):
        return tuple(tasks)
    bits = (len(tasks) - 1).bit_length()
    mirrored = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    chosen = dict.fromkeys(turned * len(tasks) >> bits for turned in mirrored)
    return tuple(tasks[index] for index in sorted(list(chosen)[:limit]))


def playable(name: str, data: str, settings: Settings) -> Benchmark:
    """The question set of that name, if the agent can be asked it.

    Raises:
        UsageError: there is no such set, it holds no question, or its questions need a tool that the
            settings leave out.
    """
    found = load(name, DataFolder(data, settings.benchmarks_dir))
    if not found.tasks:
        raise UsageError(f"'{name}' holds no question", next(iter(found.skipped), ""))
    found.require(settings.tools, '--tools "{}"')
    return found


def _load(name: str, request: EvalRequest, settings: Settings) -> Benchmark:
    found = playable(name, request.data, settings)
    tasks = tuple(given(found.tasks, request.given))
    require_some(tasks, request.given, name)
    named = scorer(request.scorer).name if request.scorer else found.scorer
    return replace(found, tasks=tasks, scorer=named)


def setup_of(settings: Settings, policy: Policy, benchmark: Benchmark, notify: Notify) -> Setup:
    """What episodes of a set share: its corpus is searched unless the settings name one."""
    own = settings.model_copy(update={"corpus": settings.corpus or benchmark.corpus})
    return make_setup(own, policy, open_tools(own, notify))


def _header(sets: Sequence[_Set], request: EvalRequest, settings: Settings) -> RunHeader:
    shape = {**shape_of(sets[0].setup), "packages": computed_by(sets[0].setup)}
    return RunHeader(
        created=_now(),
        policy=sets[0].setup.policy_id,
        sets=[one.header for one in sets],
        samples=request.samples,
        limit=request.limit,
        given=request.given,
        seed=settings.seed,
        setup={key: value for key, value in shape.items() if key != "tools"},
        packages=packages(),
        source=source(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _resolved(paths: Sequence[Path]) -> list[str]:
    return [str(path.resolve()) for path in paths]
