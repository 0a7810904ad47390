"""The loop that learns: collect → reward → credit → update → sync → validate → checkpoint.

A run lives in one folder and goes on from its last checkpoint when the same command is given again.
With a deterministic engine on a CPU the resumed run's numbers are those of an uninterrupted one. The
main process samples and writes; all processes of a run assess the same batch and learn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from agent.policies.base import Policy
from agent.policies.catalog import resolve
from agent.settings import Settings, isolated_settings
from agent.store import TrajectoryStore
from agent.trajectory import Status, Trajectory
from eval.sample import score_one
from rl import pause, ranks, run_folder
from rl.assess import Assessed, assess
from rl.batches import lay_out, minibatches
from rl.boundary import balanced, known_tasks, tasks_of, told_labels
from rl.checkpoint import Checkpoint, CheckpointError
from rl.curriculum import Drawn, Shuffle
from rl.fit import TrainingError
from rl.interrupt import graceful
from rl.learner import Learner, LearnerScorer, UpdateStats
from rl.leash import turn_kl
from rl.question_sets import QuestionSet, load_sets, open_sets, require_apart
from rl.reward_models import functions
from rl.rewards import RewardContext, require
from rl.rollouts import Stage, groups_of, measured
from rl.run_report import write_report
from rl.sampler import hand_over, open_sampler
from rl.step_metrics import (
    Metrics,
    Validated,
    facts_of,
    of_credit,
    of_rollouts,
    of_updates,
    staleness,
    validated,
)
from rl.sync import Canary
from rl.train_recipe import TrainRecipe
from rl.tripwires import require_known

log = logging.getLogger(__name__)
_GLANCE = 0.2  # seconds between two looks at whether the run ends


class Observer(Protocol):
    """Who watches a run; every method may do nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Episodes go on: `probe` before the first step, `collect` or `validate`; how many are done."""

    def notify(self, line: str) -> None:
        """One line for people."""

    def step(self, metrics: Metrics) -> None:
        """A step is done."""

    def validated(self, found: Validated) -> None:
        """The policy was measured."""


@dataclass(frozen=True)
class TrainReport:
    """What a run leaves.

    Attributes:
        out: folder of the policy: the one that validated best, or the last one.
        steps: done, of all processes of this run.
        first, best, last: share of validation questions answered rightly, with intervals as text; empty
            without validation.
        seconds: of training, in this process.
        finished: whether all steps were done.
        interrupted: whether Ctrl-C ended it; the same command goes on.
    """

    out: Path
    steps: int
    first: str
    best: str
    last: str
    seconds: float
    finished: bool
    interrupted: bool


def train(
    recipe: TrainRecipe,
    settings: Settings,
    run: Path,
    observer: Observer,
    data: str = "",
    ignore: Collection[str] = (),
) -> TrainReport:
    """Carry out a recipe, or go on with it.

    Args:
        recipe: of the run.
        settings: of this machine: folders; what shapes episodes is the recipe's.
        run: folder of the run.
        observer: is told how it goes.
        data: where question sets lie.
        ignore: tripwires that do not pause the run this time, by name.

    Raises:
        UsageError: a folder of another run, a set that does not exist, a reward that lacks something, an
            unknown tripwire.
        PolicyUnavailableError: the policy cannot be had or stopped answering.
        TrainingError: updates gave no number several times in a row.
        TrippedError: a tripwire paused the run; its checkpoint is saved.
    """
    require_known(ignore)
    ranks.join() if ranks.launched() else None
    ranks.main_first(lambda: run_folder.claim(run, recipe, free=("tripwires",)))
    torch.manual_seed(recipe.seed)
    with graceful() as interrupted:
        work = _Run(recipe, settings, run, observer, data, interrupted, ignore)
        return asyncio.run(work.carry_out())


class _Run:
    """One run; see `train`."""

    def __init__(
        self,
        recipe: TrainRecipe,
        settings: Settings,
        run: Path,
        observer: Observer,
        data: str,
        interrupted: Any,
        ignore: Collection[str],
    ) -> None:
        self.recipe, self.run, self.observer, self.data = recipe, run, observer, data
        self.settings = isolated_settings(**recipe.rollouts.agent, home=settings.home)
        self.interrupted, self.ignore = interrupted, ignore
        self.asked: tuple[QuestionSet, ...] = ()
        self.held: tuple[QuestionSet, ...] = ()
        if ranks.is_main():
            self._load()
        self.context = functions(recipe, settings.models_dir, observer.notify)
        self.base = resolve(recipe.base, settings.models_dir, observer.notify)
        update = recipe.update
        self.learner = Learner(
            self.base, update, recipe.loss, recipe.steps * update.epochs * update.minibatches
        )
        self.canary = Canary.of(self.learner.template)
        self.checkpoint = Checkpoint(run, recipe.checkpoints.keep)
        self.scores: list[tuple[int, float, str]] = []
        self.bad = 0
        self.ahead: asyncio.Task[list[list[Trajectory]]] | None = None
        self.versions: dict[str, int] = {}  # of weights, to the updates that made them

    async def carry_out(self) -> TrainReport:
        """All steps that are left."""
        began = time.monotonic()
        recipe, policy = self.recipe, None
        if ranks.is_main():
            policy = open_sampler(recipe.rollouts, recipe.base, self.base)
        try:
            known = await self._open(policy) if policy is not None else None
            self.context = replace(self.context, known=ranks.shared(known))
            state = self.checkpoint.load(self.learner.engine)
            start = int(state.get("step", 0))
            self.scores = [tuple(score) for score in state.get("scores", [])]
            self.bad = int(state.get("bad", 0))
            self._forget_after(start)
            await self._sync(policy, start)
            if start == 0:
                await self._validate(policy, 0)
            done, interrupted = await self._steps(policy, start, began)
            return self._report(done, time.monotonic() - began, interrupted)
        finally:
            if policy is not None:
                await policy.aclose()
            self._write_page()

    def _load(self) -> None:
        """Question sets, in the main process, and whether they have what the rewards need."""
        recipe, run, notify = self.recipe, self.run, self.observer.notify
        parts = (recipe.tasks, recipe.validation.tasks)
        self.loaded = [
            load_sets(tasks, self.settings, self.data, run / "worlds", notify) if tasks else ()
            for tasks in parts
        ]
        require_apart(*self.loaded)
        tasks = [task for one in self.loaded[0] for task in one.tasks]
        context = RewardContext(known=told_labels(tasks), promised=recipe.provides)
        require(recipe.reward.rewards.values(), context, tasks)

    async def _open(self, policy: Policy) -> dict[str, bool]:
        """Tools and store, in the main process; gives the tasks known closed-book."""
        recipe, notify = self.recipe, self.observer.notify
        self.asked, self.held = (
            open_sets(loaded, self.settings, policy, notify) for loaded in self.loaded
        )
        self.stage = Stage(policy, recipe.rollouts)
        self.store = TrajectoryStore.open(self.run / "trajectories.sqlite")
        known = told_labels(tasks_of(self.asked))
        if recipe.tasks.probe:
            known = await self._probe(policy)
        kept = balanced(self.asked, known, recipe.seed) if recipe.tasks.balanced else self.asked
        self.tasks = Shuffle(kept, recipe.seed)
        return known

    async def _probe(self, policy: Policy) -> dict[str, bool]:
        """Ask every task closed-book, with the weights that the run begins with."""
        recipe, notify = self.recipe, self.observer.notify
        without = self.settings.model_copy(update={"tools": ()})
        closed = open_sets(self.loaded[0], without, policy, notify)
        known = await known_tasks(
            closed, self.stage, recipe, self.run, lambda d, n: self.observer.stage("probe", d, n)
        )
        notify(f"{sum(known.values())} of {len(known)} tasks are known closed-book")
        return known

    async def _steps(self, policy: Policy | None, start: int, began: float) -> tuple[int, bool]:
        """Steps from `start` on; gives the number done, and whether Ctrl-C ended them."""
        with run_folder.metrics(self.run, start) as file:
            try:
                return await self._each(policy, start, began, file)
            finally:
                await self._drop_ahead()

    async def _each(
        self, policy: Policy | None, start: int, began: float, file: run_folder.Metrics
    ) -> tuple[int, bool]:
        recipe, device = self.recipe, self.learner.engine.device

        def late() -> bool:
            return 0 < recipe.max_seconds <= time.monotonic() - began

        for step in range(start + 1, recipe.steps + 1):
            clock, last = _Clock(), step == recipe.steps
            with clock("collect"):
                groups = await self._collected(step)
            if recipe.rollouts.ahead and not last and ranks.is_main():
                self.ahead = asyncio.create_task(self._play(step + 1))
                assessed, updates = await asyncio.to_thread(self._learn, groups, step, clock)
            else:
                assessed, updates = self._learn(groups, step, clock)
            await self._finish_ahead(lambda: self.interrupted() or late())
            stale = staleness(groups, self.versions, step - 1)
            with clock("sync"):
                await self._sync(policy, step)
            stopped = ranks.anybody(self.interrupted(), device)
            ends = last or stopped or ranks.anybody(late(), device)
            every = recipe.validation.every
            if every and (last or step % every == 0):
                with clock("validate"):
                    await self._validate(policy, step)
            metrics = self._metrics(step, groups, assessed, updates, clock)
            file.add({**metrics, "staleness": stale})
            if ranks.is_main():
                self.observer.step(metrics)
            ruined = self._count_broken(updates, step)
            tripped = None if last else self._tripped(step)
            if ends or tripped or ruined or step % recipe.checkpoints.every == 0:
                self._save(step)
            if (wrong := ruined or tripped) is not None:
                raise wrong
            if ends:
                return step, stopped and not last
        return start, False

    async def _collected(self, step: int) -> list[list[Trajectory]]:
        """A step's groups in every process, failed episodes among them; in the store from now on."""
        groups = None
        if ranks.is_main():
            groups, self.ahead = await (self.ahead or self._play(step)), None
            await asyncio.to_thread(self.store.add_many, [t for group in groups for t in group])
        return ranks.shared(groups)

    async def _finish_ahead(self, ends: Callable[[], bool]) -> None:
        """Wait for the next step's episodes, of which none straddles a sync; once the run `ends`,
        nobody learns from them, and they are cancelled."""
        while self.ahead is not None and not self.ahead.done():
            if ends():
                await self._drop_ahead()
            else:
                await asyncio.wait([self.ahead], timeout=_GLANCE)

    async def _drop_ahead(self) -> None:
        """Cancel the next step's episodes; none of them is in the store yet."""
        task, self.ahead = self.ahead, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _play(self, step: int) -> list[list[Trajectory]]:
        """A step's groups, failed episodes among them."""
        recipe = self.recipe
        drawn = self.tasks.draw(step, recipe.rollouts.tasks)
        plays = groups_of(step, drawn, recipe.rollouts, recipe.seed)
        found = await self.stage.play(plays, lambda d, n: self.observer.stage("collect", d, n))
        size = recipe.rollouts.size
        return [found[i : i + size] for i in range(0, len(found), size)]

    def _learn(
        self, groups: Sequence[Sequence[Trajectory]], step: int, clock: _Clock
    ) -> tuple[Assessed, list[UpdateStats]]:
        """Rewards, credit and the updates of one batch; in every process alike."""
        recipe = self.recipe
        whole = [[t for t in group if t.status is not Status.FAILED] for group in groups]
        context = replace(self.context, progress=(step - 1) / max(1, recipe.steps - 1))
        with clock("assess"):
            if recipe.needs_anchor:
                kl = turn_kl(self.learner, whole, recipe.update.tree_tokens)
                context = replace(context, anchor_kl=kl)
            scorer = LearnerScorer(self.learner) if recipe.needs_probes else None
            assessed = assess([group for group in whole if group], recipe, context, scorer)
            trees = lay_out(assessed, recipe.update.tree_tokens)
        with clock("update"):
            return assessed, self._update(trees, step)

    def _update(self, trees: Sequence[Any], step: int) -> list[UpdateStats]:
        update = self.recipe.update
        several = update.epochs * update.minibatches > 1
        old = None
        if several:
            scored = self.learner.scored(trees)
            old = {id(tree): values for tree, values in zip(trees, scored, strict=True)}
        out = []
        for epoch in range(update.epochs):
            order = np.random.default_rng([self.recipe.seed, step, epoch]).permutation(len(trees))
            dealt = order.tolist() if several else None
            for batch in minibatches(trees, update.minibatches, dealt):
                out.append(self.learner.step(batch, old))
        return out

    def _count_broken(self, updates: Sequence[UpdateStats], step: int) -> TrainingError | None:
        """Keep what broke for inspection; what ends the run after too many in a row."""
        broken = [tree for one in updates for tree in one.broken]
        self.bad = self.bad + 1 if any(math.isnan(one.loss) for one in updates) else 0
        if broken:
            path = self.run / "broken" / f"step-{step:05d}-{torch.distributed.get_rank()}.pt"
            path.parent.mkdir(exist_ok=True)
            torch.save([asdict(tree) for tree in broken], path)
            said = f"the loss is no number; nothing changed; see {path.relative_to(self.run)}"
            run_folder.note(self.run, step, "skipped", said)
            self.observer.notify(f"step {step}: {said}")
        if self.bad < self.recipe.update.bad_steps:
            return None
        return TrainingError(
            f"the loss was no number in {self.bad} steps in a row, the last one {step}",
            "lower update.optimizer.lr; the batches are in the run's folder, under broken/",
        )

    async def _sync(self, policy: Policy | None, step: int) -> None:
        """Hand the learner's weights, those after `step` updates, to the engine."""
        engine, rollouts = self.learner.engine, self.recipe.rollouts
        folder = self.run / "policy"
        found = await hand_over(engine, policy, self.base, folder, rollouts, self.canary)
        if found is not None:
            self.delivery = found
            self.versions[found.version] = step

    async def _validate(self, policy: Policy | None, step: int) -> None:
        """Measure the policy on the held-out tasks; keep it if it is the best so far."""
        if not self.recipe.validation.every:
            return
        found = None
        if policy is not None:
            drawn = [Drawn(one, task) for one in self.held for task in one.tasks]
            label, heat = f"validation-{step:05d}", self.recipe.validation.temperature
            plays = measured(drawn, self.recipe.seed, label, heat)
            done = await self.stage.play(plays, lambda d, n: self.observer.stage("validate", d, n))
            await asyncio.to_thread(self.store.add_many, done)
            samples = [
                score_one(source.name, source.scorer, task, trajectory)
                for (source, task), trajectory in zip(drawn, done, strict=True)
            ]
            found = validated(step, samples)
            self.observer.validated(found)
            self._note(found)
        right = ranks.shared(found.right.mean if found else None)
        self.scores.append((step, right, str(found.right) if found else ""))

    def _note(self, found: Validated) -> None:
        """Write a validation down, and keep the policy if none was better."""
        path = self.run / "validation" / f"step-{found.step:05d}.json"
        run_folder.write(path, facts_of(found))
        if all(found.right.mean > right for _, right, _ in self.scores):
            run_folder.copy(self.run / "policy", self.run / "best")

    def _save(self, step: int) -> None:
        state = {"scores": self.scores, "bad": self.bad}
        try:
            if not self.checkpoint.save(self.learner.engine, step, state):
                run_folder.note(self.run, step, "checkpoint", "it could not be saved; see the log")
        except CheckpointError as error:
            run_folder.note(self.run, step, "checkpoint", error.message)
            raise

    def _tripped(self, step: int) -> pause.TrippedError | None:
        """What pauses the run, in every process alike; None when no wire is tripped."""
        found = None
        if ranks.is_main():
            found = pause.looked(self.run, self.recipe.tripwires, self.ignore)
        return ranks.shared(found)

    def _write_page(self) -> None:
        """The run's report for people, whatever ended the run."""
        if not ranks.is_main() or not hasattr(self, "store"):
            return
        try:
            self.observer.notify(f"report: {write_report(self.run)}")
        except Exception as error:  # a page that fails must not hide how the run ended
            log.warning("the report page could not be written: %s", error, exc_info=True)

    def _forget_after(self, start: int) -> None:
        """Remove from the store what a killed process collected after the checkpoint."""
        if not ranks.is_main():
            return
        self.store.delete([t.id for t in self.store.query() if _step_of(t.group) > start])

    def _metrics(
        self,
        step: int,
        groups: Sequence[Sequence[Trajectory]],
        assessed: Assessed,
        updates: Sequence[UpdateStats],
        clock: _Clock,
    ) -> Metrics:
        scorers = {one.name: one.scorer for one in self.asked}

        def scorer_of(trajectory: Trajectory) -> tuple[str, str]:
            name = trajectory.group.split("/")[1]
            return name, scorers[name]

        behaviour = of_rollouts(groups, scorer_of) if self.asked else {}
        seconds = sum(clock.seconds.values())
        return {
            "step": step,
            "steps": self.recipe.steps,
            **of_credit(assessed),
            **behaviour,
            **of_updates(updates),
            "sync_gap": self.delivery.gap if self.asked else 0.0,
            "seconds": seconds,
            **{f"seconds/{name}": value for name, value in clock.seconds.items()},
        }

    def _report(self, done: int, seconds: float, interrupted: bool) -> TrainReport:
        best = max(self.scores, key=lambda score: score[1], default=(0, 0.0, ""))
        first = self.scores[0][2] if self.scores else ""
        last = self.scores[-1][2] if self.scores else ""
        out = self.run / ("best" if self.scores else "policy")
        report = TrainReport(
            out, done, first, best[2], last, seconds, done == self.recipe.steps, interrupted
        )
        facts = {**asdict(report), "out": out.name, "recipe": self.recipe.digest}
        run_folder.write(self.run / "report.json", facts)
        return report


class _Clock:
    """Where the time of a step goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def _step_of(group: str) -> int:
    """The step that a group of the run's store belongs to."""
    label = group.partition("/")[0]
    return int(label.rpartition("-")[2]) if label.rpartition("-")[2].isdigit() else 0
