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
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agent.policies.base import Policy
from agent.policies.catalog import resolve
from agent.settings import Settings
from agent.trajectory import Trajectory
from rl import broken, pause, ranks, run_folder
from rl.actor import Actor
from rl.assess import Assessed, assess
from rl.batches import lay_out, minibatches
from rl.best import Best
from rl.checkpoint import Checkpoint, CheckpointError
from rl.critic import Critic, CriticStats
from rl.fit import TrainingError
from rl.imitation import right_replies
from rl.inputs import claim_inputs
from rl.interrupt import graceful
from rl.learner import Learner, LearnerScorer
from rl.leash import turn_kl
from rl.observer import Observer
from rl.precision import settled
from rl.reward_models import functions
from rl.rewards import RewardContext
from rl.rewind import rewind
from rl.run_report import write_report
from rl.sampler import hand_over, open_sampler
from rl.stamp import Stamp
from rl.step import UpdateStats
from rl.step_metrics import (
    Metrics,
    Validated,
    facts_of,
    of_credit,
    of_critic,
    of_updates,
    staleness,
)
from rl.sync import Canary
from rl.train_recipe import FREE, TrainRecipe
from rl.tripwires import require_known
from rl.utilisation import flops_per_token, of_memory, of_speed, peak_flops, watch_memory

log = logging.getLogger(__name__)


def _stamp(recipe: TrainRecipe) -> Stamp:
    return Stamp.of(recipe, FREE)


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
    peak_tflops: float = 0.0,
) -> TrainReport:
    """Carry out a recipe, or go on with it.

    Args:
        recipe: of the run.
        settings: of this machine: folders; what shapes episodes is the recipe's.
        run: folder of the run.
        observer: is told how it goes.
        data: where question sets lie.
        ignore: tripwires that do not pause the run this time, by name.
        peak_tflops: 10^12 FLOP/s that one device could reach at most; 0 for what its maker states, where
            that is known.

    Raises:
        UsageError: a folder of another run, one begun with other tasks or weights, or one that another
            process trains in, a set that does not exist, a reward that lacks something, an unknown
            tripwire.
        PolicyUnavailableError: the policy cannot be had or stopped answering.
        TrainingError: updates gave no number several times in a row.
        TrippedError: a tripwire paused the run, or still does; its checkpoint is saved.
    """
    require_known(ignore)
    ranks.join() if ranks.launched() else None
    recipe = settled(recipe, run)
    torch.manual_seed(recipe.seed)
    with run_folder.held(run) if ranks.is_main() else nullcontext(), graceful() as interrupted:
        ranks.main_first(lambda: run_folder.claim(run, recipe, free=FREE))
        actor = Actor(recipe, settings, run, data, observer) if ranks.is_main() else None
        base = resolve(recipe.base, settings.models_dir, observer.notify)
        here = _taken_up(recipe, run, observer, actor, base, ignore)
        tripped: pause.TrippedError | None = ranks.shared(here)
        if tripped is not None:
            raise tripped
        context = functions(recipe, settings.models_dir, observer.notify)
        work = _Run(recipe, run, observer, actor, base, context, interrupted, ignore, peak_tflops)
        report = asyncio.run(work.carry_out())
        ranks.meet()  # a launcher ends the others once one has left with 130
        return report


def _taken_up(
    recipe: TrainRecipe,
    run: Path,
    observer: Observer,
    actor: Actor | None,
    base: Path,
    ignore: Collection[str],
) -> pause.TrippedError | None:
    """Bring the folder back to its last checkpoint, before anything is loaded; gives what still pauses
    the run there."""
    if actor is None:
        return None
    claim_inputs(run, actor.asked, actor.held, base)
    step = Checkpoint(run, recipe.checkpoints.keep).step
    rewind(run, step, _stamp(recipe))
    if step is None or step >= recipe.steps:
        return None
    tripped = pause.looked(run, recipe.tripwires, ignore)
    if tripped is not None:
        _write_page(run, observer)
    return tripped


class Learnt(NamedTuple):
    """What a step's batch taught: one entry an optimizer step of the policy, and the critic."""

    policy: list[UpdateStats]
    critic: CriticStats | None
    seconds: float  # of the policy's updates


class _Run:
    """One run; see `train`. The main process alone has an actor, and a policy while the run goes on."""

    def __init__(
        self,
        recipe: TrainRecipe,
        run: Path,
        observer: Observer,
        actor: Actor | None,
        base: Path,
        context: RewardContext,
        interrupted: Callable[[], bool],
        ignore: Collection[str],
        peak_tflops: float,
    ) -> None:
        self.recipe, self.run, self.observer, self.actor = recipe, run, observer, actor
        self.interrupted, self.ignore = interrupted, ignore
        self.base, self.context = base, context
        update = recipe.update
        self.learner = Learner(
            self.base, update, recipe.loss, recipe.steps * update.epochs * update.minibatches
        )
        self.critic = None
        if recipe.critic is not None:
            self.critic = Critic(self.base, recipe.critic, update, recipe.steps)
        self.per_token = flops_per_token(self.learner.engine.module)
        self.peak = peak_flops(peak_tflops, update.dtype)
        self.canary = Canary.of(self.learner.template)
        self.checkpoint = Checkpoint(run, recipe.checkpoints.keep, _stamp(recipe))
        self.best = Best(run, _stamp(recipe))
        self.policy: Policy | None = None
        self.scores: list[tuple[int, float, str]] = []
        self.bad = 0
        self.gap = 0.0  # of the last sync, nats
        self.versions: dict[str, int] = {}  # of weights, to the updates that made them

    @property
    def _beside(self) -> dict[str, Any]:
        """Engines besides the learner's, which checkpoints hold too."""
        return {} if self.critic is None else {"critic": self.critic.engine}

    async def carry_out(self) -> TrainReport:
        """All steps that are left."""
        began = time.monotonic()
        try:
            start = await self._open()
            with run_folder.metrics(self.run, start) as file:
                done, interrupted = await self._steps(start, began, file)
            return self._report(done, time.monotonic() - began, interrupted)
        finally:
            await self._close()

    async def _open(self) -> int:
        """Engine, tools and the last checkpoint's state; gives the steps that are done."""
        known = None
        if self.actor is not None:
            rollouts, key = self.recipe.rollouts, self.actor.api_key
            self.policy = open_sampler(rollouts, self.recipe.base, self.base, key)
            known = await self.actor.open(self.policy)
        self.context = replace(self.context, known=ranks.shared(known))
        state = self.checkpoint.load(self.learner.engine, self._beside)
        start = int(state.get("step", 0))
        self.scores = [tuple(score) for score in state.get("scores", [])]
        self.bad = int(state.get("bad", 0))
        await self._sync(start)
        if start == 0:
            await self._validate(0)
        return start

    async def _close(self) -> None:
        """End what was opened, and write the run's page, whatever ended the run."""
        if self.actor is not None:
            await self.actor.drop()
        if self.policy is not None:
            await self.policy.aclose()
        if self.actor is not None:
            if self.actor.opened:
                _write_page(self.run, self.observer)
            self.actor.close()

    async def _steps(self, start: int, began: float, file: run_folder.Metrics) -> tuple[int, bool]:
        """Steps from `start` on; gives the number done, and whether Ctrl-C ended them."""
        recipe, device = self.recipe, self.learner.engine.device

        def late() -> bool:
            return 0 < recipe.max_seconds <= time.monotonic() - began

        for step in range(start + 1, recipe.steps + 1):
            clock, last = _Clock(), step == recipe.steps
            with clock("collect"):
                groups = ranks.shared(await self.actor.collect(step) if self.actor else None)
            stale = staleness(groups, self.versions, step - 1)
            if recipe.rollouts.ahead and not last:
                assessed, learnt = await self._learn_beside(groups, step, clock)
            else:
                assessed, learnt = self._learn(groups, step, clock)
            if self.actor is not None:
                with clock("collect"):  # what the update did not cover of the next step's
                    await self.actor.finish(lambda: self.interrupted() or late())
            with clock("sync"):
                await self._sync(step)
            stopped = ranks.anybody(self.interrupted(), device)
            ends = last or stopped or ranks.anybody(late(), device)
            every = recipe.validation.every
            if every and (last or step % every == 0 or (ends and not stopped)):
                with clock("validate"):
                    await self._validate(step)
            metrics = self._metrics(step, groups, assessed, learnt, clock)
            metrics["staleness"] = stale
            file.add(metrics)
            if ranks.is_main():
                self.observer.step(metrics)
            self._tell_faults(assessed, step)
            ruined = self._count_broken(assessed, learnt, step)
            tripped = None if last else self._tripped()
            if ends or tripped or ruined or step % recipe.checkpoints.every == 0:
                self._save(step)
            if (wrong := ruined or tripped) is not None:
                raise wrong
            if ends:
                return step, stopped and not last
        return start, False

    async def _learn_beside(
        self, groups: Sequence[Sequence[Trajectory]], step: int, clock: _Clock
    ) -> tuple[Assessed, Learnt]:
        """Learn from a step's groups while the next one's are played."""
        if self.actor is None:
            return self._learn(groups, step, clock)
        self.actor.begin(step + 1)
        return await asyncio.to_thread(self._learn, groups, step, clock)

    def _learn(
        self, groups: Sequence[Sequence[Trajectory]], step: int, clock: _Clock
    ) -> tuple[Assessed, Learnt]:
        """Rewards, credit and the updates of one batch; in every process alike."""
        recipe = self.recipe
        context = replace(self.context, progress=(step - 1) / max(1, recipe.steps - 1))
        with clock("assess"):
            if recipe.needs_anchor:
                kl = turn_kl(self.learner, groups, recipe.update.tree_tokens)
                context = replace(context, anchor_kl=kl)
            scorer = LearnerScorer(self.learner) if recipe.needs_scorer else None
            values = self.critic.values if self.critic is not None else None
            assessed = assess(groups, recipe, context, scorer, values)
            right = right_replies(assessed, self.learner.template)
            trees = lay_out(assessed, recipe.update.tree_tokens, right)
        with clock("update"):
            watch_memory()
            began = time.monotonic()
            updates, taught = self._update(trees, step), None
            took = time.monotonic() - began
            before, targets = assessed.batch.values, assessed.credit.targets
            if self.critic is not None and before is not None and targets is not None:
                taught = self.critic.fit(trees, before, targets, (recipe.seed, step))
            return assessed, Learnt(updates, taught, took)

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

    def _tell_faults(self, assessed: Assessed, step: int) -> None:
        """Write down which rewards failed in their own code."""
        for fault in assessed.faults:
            run_folder.note(self.run, step, "fault", fault)
            self.observer.notify(f"step {step}: {fault}; its episodes are left out")

    def _count_broken(self, assessed: Assessed, learnt: Learnt, step: int) -> TrainingError | None:
        """Keep what broke for inspection; what ends the run after too many in a row."""
        kinds = {"policy": learnt.policy, "critic": learnt.critic.updates if learnt.critic else ()}
        whose = [name for name, all_ in kinds.items() if any(math.isnan(one.loss) for one in all_)]
        for name in whose:
            trees = [tree for one in kinds[name] for tree in one.broken]
            targets = assessed.credit.targets if name == "critic" else None
            self.observer.notify(broken.keep(self.run, step, name, trees, targets))
        self.bad = self.bad + 1 if whose else 0
        if self.bad < self.recipe.update.bad_steps:
            return None
        key = "update.optimizer.lr" if "policy" in whose else "critic.optimizer.lr"
        return TrainingError(
            f"the loss or its gradient was no number in {self.bad} steps in a row, the last one {step}",
            f"lower {key}; the batches are in the run's folder, under broken/",
        )

    async def _sync(self, step: int) -> None:
        """Hand the learner's weights, those after `step` updates, to the engine."""
        engine, rollouts, folder = self.learner.engine, self.recipe.rollouts, self.run / "policy"
        found = await hand_over(engine, self.policy, self.base, folder, rollouts, self.canary)
        if found is not None:
            self.gap, self.versions[found.version] = found.gap, step

    async def _validate(self, step: int) -> None:
        """Measure the policy on the held-out tasks; keep it if it is the best so far."""
        if not self.recipe.validation.every:
            return
        found = None
        if self.actor is not None:
            found = await self.actor.validate(step)
            self.observer.validated(found)
            self._note(found)
        right = ranks.shared(found.right.mean if found else None)
        self.scores.append((step, right, str(found.right) if found else ""))

    def _note(self, found: Validated) -> None:
        """Write a validation down, and keep the policy if none was better."""
        path = self.run / "validation" / f"step-{found.step:05d}.json"
        run_folder.write(path, facts_of(found))
        if all(found.right.mean > right for _, right, _ in self.scores):
            self.best.take(self.run / "policy", found.step)

    def _save(self, step: int) -> None:
        state = {"scores": self.scores, "bad": self.bad}
        try:
            if self.checkpoint.save(self.learner.engine, step, state, self._beside):
                self.best.commit()
            else:
                run_folder.note(self.run, step, "checkpoint", "it could not be saved; see the log")
        except CheckpointError as error:
            run_folder.note(self.run, step, "checkpoint", error.message)
            raise

    def _tripped(self) -> pause.TrippedError | None:
        """What pauses the run, in every process alike; None when no wire is tripped."""
        found = None
        if ranks.is_main():
            found = pause.looked(self.run, self.recipe.tripwires, self.ignore)
        return ranks.shared(found)

    def _metrics(
        self,
        step: int,
        groups: Sequence[Sequence[Trajectory]],
        assessed: Assessed,
        learnt: Learnt,
        clock: _Clock,
    ) -> Metrics:
        behaviour = self.actor.behaviour(groups) if self.actor is not None else {}
        return {
            "step": step,
            "steps": self.recipe.steps,
            **of_credit(assessed),
            **behaviour,
            **of_updates(learnt.policy),
            **(of_critic(learnt.critic) if learnt.critic is not None else {}),
            **of_speed(learnt.policy, learnt.seconds, self.per_token, self.peak),
            **of_memory(),
            "sync_gap": self.gap,
            "seconds": sum(clock.seconds.values()),
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


def _write_page(run: Path, observer: Observer) -> None:
    """The run's report for people."""
    try:
        observer.notify(f"report: {write_report(run)}")
    except Exception as error:  # a page that fails must not hide how the run ended
        log.warning("the report page could not be written: %s", error, exc_info=True)


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
