"""Collection: groups of rollouts of many tasks, into a trajectory store.

Every episode has an id that follows from what shapes it, from all that its task holds and from its
seed, so that nothing is collected twice, a corrected gold answer makes other episodes, and a collection
that was killed ends with the same ids as one that was not. Episodes in mid-air
are checkpointed after each step, beside the user's data; they go on from there, with the tokens and
log-probabilities that they had.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agent.checkpoints import checkpoints
from agent.episode import Episode
from agent.graph import Setup
from agent.policies.base import Policy
from agent.policies.registry import policy_of
from agent.rollout import Play, rollouts
from agent.settings import Settings
from agent.store import TrajectoryStore
from agent.threads import Threads
from agent.trajectory import Status, StopReason, Trajectory
from eval.benchmarks import Benchmark, DataFolder, Split, load
from eval.folder import shape_of
from eval.run import setup_of, spread
from kg import lock, private_folder
from kg.errors import PolicyUnavailableError, UsageError

_STAGE = "collected"
GIVE_UP = 8  # policy failures in a row that end a collection

Notify = Callable[[str], None]
Advance = Callable[[str, int, int, str], None]


class CollectRequest(BaseModel):
    """What to collect.

    Attributes:
        tasks: question sets, files of questions or folders of worlds.
        data: where the sets' files are; see `eval.data.DataFolder`.
        split: part of each set; `train`, so that nothing is trained on what is tested.
        limit: tasks a set, spread evenly over it; 0 for all.
        group: rollouts a task, with seeds `seed`, `seed + 1`, …
        seed: of each group's first rollout; other seeds add rollouts to the same groups.
        concurrency: episodes at once, over all actors together; each has at least one.
        actors: Ray actors to spread them over, each with its own engine; 0 for this process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(min_length=1)
    data: str = ""
    split: Split = "train"
    limit: int = Field(0, ge=0)
    group: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)
    concurrency: int = Field(8, ge=1)
    actors: int = Field(0, ge=0)


@dataclass(frozen=True)
class CollectReport:
    """What a collection did.

    Attributes:
        groups, episodes: asked for in all, an episode of two sets counted once; `known` of the episodes
            were there before, or were stored by another process meanwhile.
        resumed: episodes that went on from a killed process.
        statuses: of the new episodes.
        sampled_tokens, prompt_tokens: of the new episodes; a prompt that is read again counts again.
        seconds: wall time; `tokens_per_second` is of sampled ones.
        skipped: rows of the data that gave no task.
    """

    groups: int
    episodes: int
    known: int
    resumed: int
    statuses: dict[str, int]
    sampled_tokens: int
    prompt_tokens: int
    seconds: float
    tokens_per_second: float
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The episodes of one question set, and what they share.

    Attributes:
        name: of the set.
        setup: what its episodes share.
        episodes: in order, group after group, each with its id and group.
        skipped: rows of the data that gave no task.
    """

    name: str
    setup: Setup
    episodes: tuple[Episode, ...]
    skipped: tuple[str, ...]


def collect(
    request: CollectRequest,
    settings: Settings,
    out: str,
    notify: Notify = lambda line: None,
    advance: Advance = lambda stage, done, total, spent: None,
) -> CollectReport:
    """Collect, or go on with a collection.

    Args:
        request: what.
        settings: policy, tools and budgets, as for `agent ask`; sampling must be the model's own.
        out: path or URL of the trajectory store.
        notify: gets one line a stage.
        advance: gets a stage, finished episodes, their total, and the tokens of the new ones in words.

    Raises:
        UsageError: unknown names, no task, sampling or a policy that cannot be trained on, or another
            process collects into the store.
        PolicyUnavailableError: the policy cannot be had, or failed many times in a row; what is
            finished is kept.
    """
    return carry_out(request, settings, out, notify, advance)[0]


def carry_out(
    request: CollectRequest, settings: Settings, out: str, notify: Notify, advance: Advance
) -> tuple[CollectReport, list[Plan]]:
    """What `collect` does; gives also the plan of each set, in order, in which the ids stand.

    Raises:
        UsageError, PolicyUnavailableError: as `collect`.
    """
    require_untruncated(settings)
    sets = load_sets(request, settings)
    with TrajectoryStore.open(out) as store, _alone(store, settings):
        if request.actors:
            from rl.collect_ray import play

            return play(sets, request, settings, store, notify, advance)
        return asyncio.run(_collect(sets, request, settings, store, notify, advance))


def require_untruncated(settings: Settings) -> None:
    """Training data are drawn from the model's own distribution: its log-probabilities are recorded.

    Raises:
        UsageError: the settings draw from another one.
    """
    sampling = settings.sampling
    if sampling.temperature != 1.0 or sampling.top_p < 1.0 or sampling.top_k > 0:
        raise UsageError(
            "training data must be sampled at temperature 1 without top_p and top_k, not at "
            f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}",
            "leave these settings out; agent eval takes any",
        )


def load_sets(request: CollectRequest, settings: Settings) -> list[Benchmark]:
    """The sets of a request; two files of one name are two sets as long as their tasks differ.

    Raises:
        UsageError: as `load_set`, or a set is named twice.
    """
    sets: list[Benchmark] = []
    for name in request.tasks:
        found = load_set(name, request, settings)
        if any((one.name, one.tasks) == (found.name, found.tasks) for one in sets):
            raise UsageError(f"a set is named twice: {found.name}", "name each set once")
        sets.append(found)
    return sets


def load_set(name: str, request: CollectRequest, settings: Settings) -> Benchmark:
    """A set with the tasks of the request.

    Raises:
        UsageError: there is no such set, it holds no task, or it needs a tool that is not named.
    """
    found = load(name, DataFolder(request.data, settings.benchmarks_dir), request.split)
    if not found.tasks:
        raise UsageError(f"'{name}' holds no task", next(iter(found.skipped), ""))
    found.require(settings.tools, '--tools "{}"')
    return replace(found, tasks=spread(found.tasks, request.limit))


def make_plan(
    found: Benchmark, policy: Policy, request: CollectRequest, settings: Settings, notify: Notify
) -> Plan:
    """The episodes of a set under a policy.

    No episode ends by the clock unless the settings name a limit: what is collected would depend on
    the machine and on how many others waited for its engine.

    Raises:
        UsageError: the policy gives no token ids.
    """
    if policy.template is None:
        raise UsageError(
            f"the policy '{policy.name}' gives no token ids: its episodes cannot be trained on",
            "collect with a local model: a folder, vllm:NAME or a name of agent models list",
        )
    setup = setup_of(settings, policy, found, notify)
    setup = setup if "seconds" in settings.budgets.model_fields_set else setup.untimed()
    shape = json.dumps([found.name, setup.policy_id, shape_of(setup)], sort_keys=True)
    digest = hashlib.sha256(shape.encode()).hexdigest()[:12]
    episodes = tuple(_episodes(found, digest, request))
    return Plan(found.name, setup, episodes, found.skipped)


def _episodes(found: Benchmark, digest: str, request: CollectRequest) -> Iterator[Episode]:
    for task in found.tasks:
        # files of one name share task ids, and a stored task must not outlive a corrected one
        content = json.dumps(task.to_dict(), sort_keys=True)
        which = hashlib.sha256(f"{digest}/{content}".encode()).hexdigest()[:12]
        group = f"{found.name}/{task.id}/{which}"
        for seed in range(request.seed, request.seed + request.group):
            id = hashlib.sha256(f"{group}/{seed}".encode()).hexdigest()[:32]
            yield Episode(task, seed=seed, group=group, meta={"id": id})


def _place(store: TrajectoryStore, settings: Settings) -> Path:
    name = hashlib.sha256(store.identity.encode()).hexdigest()[:12]
    return settings.data_dir / "collecting" / f"{name}.sqlite"


def _alone(store: TrajectoryStore, settings: Settings) -> AbstractContextManager[None]:
    """Keep other collections of this data folder off a store: they would share its journal."""
    with suppress(OSError):  # the lock tells what cannot be made
        private_folder.make(settings.data_dir)
    return lock.held(
        _place(store, settings).with_suffix(".lock"),
        f"another process is collecting into {store.identity}",
        "wait for it, or choose another --out",
    )


def journal(store: TrajectoryStore, settings: Settings, notify: Notify = lambda line: None) -> Path:
    """The file of unfinished episodes of a store.

    One that is damaged is set aside and told: its episodes begin anew, and no finished one is lost.
    """
    path = _place(store, settings)
    if path.is_file() and (cause := _damage(path)):
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        notify(
            f"unfinished episodes begin anew: their file was damaged ({cause}); it is now {aside}"
        )
    return path


def _damage(path: Path) -> str:
    """What is wrong with an SQLite file; "" when nothing is, or when it is only busy."""
    try:
        with closing(sqlite3.connect(path)) as file:
            found = str(file.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == "ok" else found


class Tally:
    """What was collected so far.

    Args:
        plans: what is to be collected.
        missing: ids of the episodes that were not there.
        begun: ids of those that another process left in mid-air.
        advance: told of each episode.
    """

    def __init__(self, plans: Sequence[Plan], missing: int, begun: int, advance: Advance) -> None:
        self._plans = plans
        self._total = len({episode.meta["id"] for plan in plans for episode in plan.episodes})
        self._known = self._total - missing
        self._resumed = begun
        self._advance = advance
        self._began = time.perf_counter()
        self._statuses: dict[str, int] = {}
        self._tokens = [0, 0]
        self._failures = 0
        self._tell()

    def add(self, done: Trajectory, new: bool) -> None:
        """Count an episode.

        Args:
            done: the episode.
            new: whether the store took it; one that another process stored meanwhile was there.

        Raises:
            PolicyUnavailableError: the policy failed too often in a row.
        """
        if new:
            self._statuses[done.status] = self._statuses.get(done.status, 0) + 1
            self._tokens[0] += sum(turn.reply_tokens for turn in done.turns)
            self._tokens[1] += sum(turn.prompt_tokens for turn in done.turns)
        else:
            self._known += 1
        self._tell()
        failed = done.stop_reason is StopReason.POLICY_ERROR
        self._failures = self._failures + 1 if failed else 0
        if self._failures == GIVE_UP:
            raise PolicyUnavailableError(
                f"the policy failed {GIVE_UP} times in a row: {done.error}",
                "run the same command again to go on from here",
            )

    def _tell(self) -> None:
        sampled, read = self._tokens
        spent = f"{sampled:,} tokens sampled, {read:,} read"
        self._advance(_STAGE, self._known + sum(self._statuses.values()), self._total, spent)

    def report(self) -> CollectReport:
        """The figures."""
        seconds = time.perf_counter() - self._began
        groups = {episode.group for plan in self._plans for episode in plan.episodes}
        return CollectReport(
            groups=len(groups),
            episodes=self._total,
            known=self._known,
            resumed=self._resumed,
            statuses=dict(sorted(self._statuses.items())),
            sampled_tokens=self._tokens[0],
            prompt_tokens=self._tokens[1],
            seconds=round(seconds, 3),
            tokens_per_second=round(self._tokens[0] / seconds, 1) if seconds else 0.0,
            skipped=tuple(line for plan in self._plans for line in plan.skipped),
        )


def missing_of(plans: Sequence[Plan], store: TrajectoryStore) -> list[list[Episode]]:
    """For each plan the episodes that the store lacks and no plan before it has; failed ones are
    removed from the store."""
    known = store.statuses()
    wanted = {episode.meta["id"] for plan in plans for episode in plan.episodes}
    failed = [id for id, status in known.items() if id in wanted and status == Status.FAILED]
    store.delete(failed)
    taken, missing = known.keys() - set(failed), list[list[Episode]]()
    for plan in plans:
        lacking = {e.meta["id"]: e for e in plan.episodes if e.meta["id"] not in taken}
        taken |= lacking.keys()
        missing.append(list(lacking.values()))
    return missing


async def _collect(
    sets: Sequence[Benchmark],
    request: CollectRequest,
    settings: Settings,
    store: TrajectoryStore,
    notify: Notify,
    advance: Advance,
) -> tuple[CollectReport, list[Plan]]:
    policy = policy_of(settings, notify)
    try:
        plans = [make_plan(one, policy, request, settings, notify) for one in sets]
        path = journal(store, settings, notify)
        missing = missing_of(plans, store)
        begun = clean(path, plans, missing)
        tally = Tally(plans, sum(map(len, missing)), begun, advance)
        plays = (
            Play(plan.setup, episode)
            for plan, episodes in zip(plans, missing, strict=True)
            for episode in episodes
        )
        async with aclosing(played(plays, request.concurrency, path)) as done:
            async for trajectory in done:
                tally.add(trajectory, await asyncio.to_thread(store.add, trajectory))
        await asyncio.to_thread(clean, path, plans, [[] for _ in plans])
        return tally.report(), plans
    finally:
        await policy.aclose()


async def played(plays: Iterable[Play], concurrency: int, path: Path) -> AsyncGenerator[Trajectory]:
    """Episodes as they finish, each going on from its checkpoint where it has one."""
    async with checkpoints(path) as saver:
        await saver.conn.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing
        stream = rollouts(plays, concurrency, saver)
        async with aclosing(stream):
            async for trajectory in stream:
                yield trajectory
                await saver.adelete_thread(trajectory.id)


def clean(path: Path, plans: Sequence[Plan], missing: Sequence[Sequence[Episode]]) -> int:
    """Forget checkpoints of episodes that are finished; gives how many are still to go on."""
    threads = Threads(path)
    wanted = {episode.meta["id"] for episodes in missing for episode in episodes}
    ours = {episode.meta["id"] for plan in plans for episode in plan.episodes}
    there = threads.ids()
    threads.forget(there & (ours - wanted))
    return len(there & wanted)


def described(report: CollectReport) -> Mapping[str, Any]:
    """The report as lines for people."""
    return {
        "groups": report.groups,
        "episodes": f"{report.episodes} ({report.known} were there, {report.resumed} went on)",
        "new": ", ".join(f"{count} {status}" for status, count in report.statuses.items())
        or "none",
        "tokens": f"{report.sampled_tokens:,} sampled, {report.prompt_tokens:,} read",
        "time": f"{report.seconds:.1f} s, {report.tokens_per_second:.1f} sampled tokens a second",
        "rows left out": len(report.skipped),
    }
