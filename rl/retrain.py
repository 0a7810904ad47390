"""Retraining from use: a policy learns from the episodes that it was used for.

Two ways. `imitate`: episodes that were good enough become demonstrations (rejection sampling), with
corrections in the place of wrong answers. `gradient`: a policy gradient over all episodes of tasks that
were asked several times, each token weighted by how likely the policy of today is to draw it (truncated
importance sampling), since an older version drew it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agent.policies.catalog import resolve, weights_version
from agent.policies.chat import ChatTemplate
from agent.settings import Settings
from agent.store import Filter, TrajectoryStore
from agent.trajectory import Trajectory
from kg.errors import UsageError
from rl import broken, ranks, run_folder
from rl.assess import DECLINED, Assessed, assess
from rl.assessment_recipe import Correction
from rl.batches import TreeBatch, UpdateBatch, lay_out, minibatches
from rl.boundary import foreign_labels, told_labels
from rl.checkpoint import Checkpoint
from rl.fit import TrainingError
from rl.imitation import right_replies
from rl.interrupt import graceful
from rl.learner import Learner, LearnerScorer
from rl.leash import turn_kl
from rl.logged import (
    Chosen,
    LeftOut,
    Wanted,
    by_task,
    comparable,
    demonstrations,
    played_under,
)
from rl.model_files import write_model
from rl.precision import settled
from rl.recipe import SftRecipe
from rl.reward_models import functions
from rl.rewards import Need, Part, RewardContext, missing, require
from rl.rewards.context import task_key
from rl.rewind import rewind
from rl.sft import train as fine_tune
from rl.stamp import Stamp
from rl.step_metrics import of_credit, of_updates
from rl.sync import collected
from rl.train_recipe import TrainRecipe

Notify = Callable[[str], None]
Way = Literal["imitate", "gradient"]


@dataclass(frozen=True)
class RetrainReport:
    """What a retraining did.

    Attributes:
        out: folder of the policy or of its adapter.
        way: as asked for.
        episodes: read; `used` of them were trained on, `corrected` of these with a corrected answer.
        silent: used episodes that were like all others of their task, with nothing to be compared by;
            of `gradient` alone.
        left_out: reasons by how many episodes they left out.
        unreadable: damaged rows of the store.
        steps: optimizer steps.
        finished: whether all steps were done.
        interrupted: whether Ctrl-C ended it; the same command goes on.
    """

    out: Path
    way: Way
    episodes: int
    used: int
    corrected: int
    silent: int
    left_out: dict[str, int]
    unreadable: int
    steps: int
    finished: bool
    interrupted: bool


def retrain(
    url: str,
    recipe: TrainRecipe,
    settings: Settings,
    run: Path,
    way: Way = "imitate",
    wanted: Wanted | None = None,
    notify: Notify = lambda line: None,
) -> RetrainReport:
    """Train a policy on logged episodes.

    Of the recipe count: base, update, seed; for `gradient` also rewards, credit, loss, and
    `rollouts.tasks` as the number of tasks of an optimizer step. A named reward of `wanted` takes the
    place of the recipe's rewards.

    Args:
        url: path or URL of the trajectory store.
        recipe: how.
        settings: of this machine: folder of models.
        run: folder of the run; `retrain.json` and `left_out.json` tell what was used, the former also
            the digest of the recipe as it was carried out, and the agent's settings: those named in
            `from_episodes` are the episodes', the others the recipe's.
        way: `imitate` or `gradient`.
        wanted: which episodes are good enough.
        notify: gets one line a stage.

    Raises:
        UsageError: no episode that can be trained on, whose reasons are told; or a folder of another
            run, one begun on other episodes, or one that another process trains in.
        PolicyUnavailableError: the base cannot be had.
        TrainingError: the loss or its gradient was no number several times in a row, or once in
            `imitate`.
        CheckpointError: two checkpoints in a row could not be saved, or the last one cannot be read.
    """
    wanted = wanted or Wanted()
    recipe = _off_policy(recipe, wanted) if way == "gradient" else recipe
    ranks.join() if ranks.launched() else None
    recipe = settled(recipe, run)
    base = resolve(recipe.base, settings.models_dir, notify)
    template, problems = ChatTemplate.load(base), list[str]()
    select = demonstrations if way == "imitate" else comparable
    with TrajectoryStore.open(url) as store:
        found = store.query(Filter(newest_first=False), problems)
        picked = select(found, wanted, template, recipe.base, weights_version(base))
    _require_some(picked)
    notify(_told(picked))
    if way == "imitate":
        done = _imitate(recipe, base, picked, run, notify)
    else:
        done = _gradient(recipe, base, picked, settings, run, notify)
    report = replace(done, unreadable=len(problems))
    if ranks.is_main():
        run_folder.write(run / "left_out.json", [one._asdict() for one in picked.left_out])
        facts = {**asdict(report), "out": report.out.name, "recipe": recipe.digest}
        played = played_under(picked.used)
        facts |= {"agent": {**recipe.rollouts.agent, **played}, "from_episodes": sorted(played)}
        run_folder.write(run / "retrain.json", facts)
    return report


def _require_some(picked: Chosen) -> None:
    """Raises UsageError: nothing is left to train on."""
    if picked.used:
        return
    if not picked.left_out:
        raise UsageError("the store holds no such episode", "agent trace list --store …")
    reasons = "; ".join(f"{reason} ({count})" for reason, count in picked.reasons.items())
    said = f"none of {len(picked.left_out)} episodes can be trained on: {reasons}"
    hint = (
        "attach rewards or corrections (agent trace reward, agent trace correct), or name the policies "
        "whose episodes count (--from-policy NAME, as agent trace list shows it)"
    )
    if DECLINED in picked.reasons:
        hint = f"compare those that declined: --set credit.declined=compare; or {hint}"
    raise UsageError(said, hint)


def _told(picked: Chosen) -> str:
    read = len(picked.used) + len(picked.left_out)
    parts = [f"{len(picked.used)} of {read} episodes are used"]
    if picked.corrected:
        parts.append(f"{picked.corrected} of them with a corrected answer")
    parts += [f"left out: {count} ({reason})" for reason, count in picked.reasons.items()]
    return "; ".join(parts)


def _report(picked: Chosen, **facts: Any) -> RetrainReport:
    read = len(picked.used) + len(picked.left_out)
    return RetrainReport(
        episodes=read,
        used=len(picked.used),
        corrected=picked.corrected,
        left_out=picked.reasons,
        unreadable=0,
        **facts,
    )


def _imitate(
    recipe: TrainRecipe, base: Path, picked: Chosen, run: Path, notify: Notify
) -> RetrainReport:
    """Fine-tune on the demonstrations."""
    update = recipe.update
    sft = SftRecipe(
        base=recipe.base,
        lora=update.lora,
        optimizer=update.optimizer,
        epochs=update.epochs,
        pack_tokens=min(update.tree_tokens, 2048),
        dtype=update.dtype,
        zero=update.zero,
        seed=recipe.seed,
    )
    done = fine_tune(
        sft,
        base,
        picked.used,
        run,
        lambda step: notify(f"step {step.step}/{step.steps}  loss {step.loss:.4f}"),
    )
    return _report(
        picked,
        out=done.out,
        way="imitate",
        silent=0,
        steps=done.steps,
        finished=done.finished,
        interrupted=done.interrupted,
    )


def _gradient(
    recipe: TrainRecipe,
    base: Path,
    picked: Chosen,
    settings: Settings,
    run: Path,
    notify: Notify,
) -> RetrainReport:
    """One or more passes of the policy gradient over the episodes; goes on after an interruption."""
    context = _context(recipe, picked.used, settings, notify)
    with run_folder.held(run) if ranks.is_main() else nullcontext():
        ranks.main_first(lambda: run_folder.claim(run, recipe))
        ranks.main_first(lambda: run_folder.claim_episodes(run, picked.used))
        return _descended(recipe, base, picked, context, run, notify)


def _descended(
    recipe: TrainRecipe,
    base: Path,
    picked: Chosen,
    context: RewardContext,
    run: Path,
    notify: Notify,
) -> RetrainReport:
    """The policy gradient, in a folder that is this run's."""
    groups, update = by_task(picked.used), recipe.update
    per_pass = math.ceil(len(groups) / recipe.rollouts.tasks)
    torch.manual_seed(recipe.seed)
    learner = Learner(base, update, recipe.loss, per_pass * update.epochs)
    assessed = _assessed(learner, groups, recipe, context)
    picked.left_out += [LeftOut(one.id, one.reason) for one in assessed.dropped]
    gone = {one.id for one in assessed.dropped}
    picked.used = [one for one in picked.used if one.id not in gone]
    _require_some(picked)
    trees = lay_out(assessed, update.tree_tokens, right_replies(assessed, learner.template))
    batches = _batches(trees, per_pass, recipe)
    passes = _Passes(learner, batches, recipe, assessed, run, notify)
    steps, interrupted = passes.carry_out()
    out = run / "policy"
    weights, adapter = collected(learner.engine, str(base), keep=ranks.is_main())
    if ranks.is_main():
        dtype = torch.bfloat16 if update.dtype == "bfloat16" else torch.float32
        write_model(weights, base, out, dtype, adapter)
    silent = sum(not advantages.any() for advantages in assessed.credit.advantages)
    finished = steps == len(batches)
    return _report(
        picked,
        out=out,
        way="gradient",
        silent=silent,
        steps=steps,
        finished=finished,
        interrupted=interrupted and not finished,
    )


def _off_policy(recipe: TrainRecipe, wanted: Wanted) -> TrainRecipe:
    """The recipe with importance weights, and with the named reward where there is one.

    Raises:
        UsageError: its estimator reads values, and there is no critic here.
    """
    if recipe.critic is not None:
        raise UsageError(
            f"{recipe.credit.estimator} needs a critic, which retraining has none of",
            "take one that compares the rollouts of a task: --set 'credit={estimator: rloo}' "
            "--set critic=null",
        )
    correction = recipe.loss.correction or Correction()
    loss = recipe.loss.model_copy(update={"correction": correction})
    changes: dict[str, Any] = {"loss": loss}
    if wanted.reward:
        part = Part(reward="attached", options={"key": wanted.reward})
        changes["rewards"] = {wanted.reward: part}
    return TrainRecipe.model_validate({**recipe.model_dump(), **changes})


def _context(
    recipe: TrainRecipe, used: Sequence[Trajectory], settings: Settings, notify: Notify
) -> RewardContext:
    """What the rewards read besides the episodes.

    A task that lacks what a reward reads is left out later, with its reason; a log may hold any.

    Raises:
        UsageError: a reward lacks something that a log does not have, or that none of its tasks has.
    """
    tasks = list({task_key(one.task): one.task for one in used}.values())
    known = told_labels(tasks)
    given = replace(functions(recipe, settings.models_dir, notify), known=known, progress=1.0)
    lacking = {Need.KNOWN} if not known else set()
    lacking |= {Need.VOTES} if len(tasks) < 2 else set()
    promised = replace(given, promised=recipe.provides - lacking)
    rewards = list(recipe.reward.rewards.values())
    whole = [task for task in tasks if not missing(rewards, promised, [task])]
    require(rewards, promised, whole or tasks)
    if any(Need.KNOWN in reward.needs for reward in rewards):
        unlabelled = len(tasks) - len(known)
        bare = f"{unlabelled} of {len(tasks)} tasks have no label of agent probe and are left out"
        for line in (bare if unlabelled else "", foreign_labels(tasks, recipe.base)):
            if line:
                notify(line)
    return given


def _assessed(
    learner: Learner,
    groups: Sequence[Sequence[Trajectory]],
    recipe: TrainRecipe,
    context: RewardContext,
) -> Assessed:
    if recipe.needs_anchor:
        kl = turn_kl(learner, groups, recipe.update.tree_tokens)
        context = replace(context, anchor_kl=kl)
    scorer = LearnerScorer(learner) if recipe.needs_scorer else None
    return assess(groups, recipe, context, scorer)


def _batches(trees: Sequence[TreeBatch], per_pass: int, recipe: TrainRecipe) -> list[UpdateBatch]:
    """What each optimizer step reads, pass by pass, each in an order of its own."""
    out: list[UpdateBatch] = []
    for epoch in range(recipe.update.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(trees)).tolist()
        out += minibatches(trees, per_pass, order)
    return out


class _Passes:
    """Optimizer steps over all batches, from the last checkpoint on."""

    def __init__(
        self,
        learner: Learner,
        batches: Sequence[UpdateBatch],
        recipe: TrainRecipe,
        assessed: Assessed,
        run: Path,
        notify: Notify,
    ) -> None:
        self.learner, self.batches, self.recipe = learner, batches, recipe
        self.assessed, self.run, self.notify = assessed, run, notify
        self.checkpoint = Checkpoint(run, recipe.checkpoints.keep, Stamp.of(recipe))
        self.bad = 0

    def carry_out(self) -> tuple[int, bool]:
        """All steps that are left; gives how many are done, and whether Ctrl-C ended them."""
        engine, last = self.learner.engine, len(self.batches)
        state = self.checkpoint.load(engine)
        start, self.bad = int(state.get("step", 0)), int(state.get("bad", 0))
        if ranks.is_main():
            rewind(self.run, start)
        with graceful() as interrupted, run_folder.metrics(self.run, start) as file:
            for step in range(start + 1, last + 1):
                file.add(self._step(step))
                ruined = self.bad >= self.recipe.update.bad_steps
                stopped = ranks.anybody(interrupted(), engine.device)
                if stopped or ruined or step == last or step % self.recipe.checkpoints.every == 0:
                    self.checkpoint.save(engine, step, {"bad": self.bad})
                if ruined:
                    raise TrainingError(
                        f"the loss or its gradient was no number in {self.bad} steps in a row, the last "
                        f"one {step}",
                        "lower update.optimizer.lr; the batches are in the run's folder, under broken/",
                    )
                if stopped:
                    return step, True
        return last, False

    def _step(self, step: int) -> dict[str, float]:
        """One optimizer step and its figures; a batch that broke is kept."""
        stats = self.learner.step(self.batches[step - 1])
        no_number = math.isnan(stats.loss)
        self.bad = self.bad + 1 if no_number else 0
        if no_number:
            self.notify(broken.keep(self.run, step, "policy", stats.broken))
        self.notify(f"step {step}/{len(self.batches)}  loss {stats.loss:.4f}")
        return {"step": step, **of_credit(self.assessed), **of_updates([stats])}
