"""Retraining from use: a policy learns from the episodes that it was used for.

Two ways. `imitate`: episodes that were good enough become demonstrations (rejection sampling), with
corrections in the place of wrong answers. `gradient`: a policy gradient over all episodes of tasks that
were asked several times, each token weighted by how likely the policy of today is to draw it (truncated
importance sampling), since an older version drew it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agent.policies.catalog import resolve
from agent.policies.chat import ChatTemplate
from agent.settings import Settings
from agent.store import Filter, TrajectoryStore
from agent.trajectory import Trajectory
from kg.errors import UsageError
from rl import ranks, run_folder
from rl.assess import Assessed, assess
from rl.batches import lay_out, minibatches
from rl.closed_book import KNOWN
from rl.fit import TrainingError
from rl.interrupt import graceful
from rl.learner import Learner, LearnerScorer
from rl.leash import turn_kl
from rl.logged import Chosen, LeftOut, Wanted, by_task, comparable, demonstrations
from rl.model_files import write_model
from rl.recipe import SftRecipe
from rl.reward_models import functions
from rl.rewards import Need, Part, RewardContext, require
from rl.sft import train as fine_tune
from rl.step_metrics import of_credit, of_updates
from rl.sync import collected
from rl.train_recipe import Correction, TrainRecipe

Notify = Callable[[str], None]
Way = Literal["imitate", "gradient"]


@dataclass(frozen=True)
class RetrainReport:
    """What a retraining did.

    Attributes:
        out: folder of the policy or of its adapter.
        way: as asked for.
        episodes: read; `used` of them were trained on, `corrected` of these with a corrected answer.
        silent: used episodes that were like all others of their task, and so taught nothing; of
            `gradient` alone.
        left_out: reasons by how many episodes they left out.
        unreadable: damaged rows of the store.
        steps: optimizer steps.
        finished: whether all steps were done.
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


def retrain(
    url: str,
    recipe: TrainRecipe,
    settings: Settings,
    run: Path,
    way: Way = "imitate",
    wanted: Wanted | None = None,
    chosen: Filter | None = None,
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
        run: folder of the run; `retrain.json` and `left_out.json` tell what was used.
        way: `imitate` or `gradient`.
        wanted: which episodes are good enough.
        chosen: which episodes are read at all.
        notify: gets one line a stage.

    Raises:
        UsageError: no episode that can be trained on; the reasons are told.
        PolicyUnavailableError: the base cannot be had.
        TrainingError: the loss became not a number.
    """
    wanted = wanted or Wanted()
    ranks.join() if ranks.launched() else None
    base = resolve(recipe.base, settings.models_dir, notify)
    template, problems = ChatTemplate.load(base), list[str]()
    select = demonstrations if way == "imitate" else comparable
    with TrajectoryStore.open(url) as store:
        found = store.query(chosen or Filter(newest_first=False), problems)
        picked = select(found, wanted, template, recipe.base)
    _require_some(picked)
    notify(_told(picked))
    if way == "imitate":
        done = _imitate(recipe, base, picked, run, notify)
    else:
        done = _gradient(recipe, base, picked, wanted, settings, run, notify)
    report = replace(done, unreadable=len(problems))
    if ranks.is_main():
        run_folder.write(run / "left_out.json", [one._asdict() for one in picked.left_out])
        facts = {**asdict(report), "out": report.out.name, "recipe": recipe.digest}
        facts["agent"] = recipe.rollouts.agent
        run_folder.write(run / "retrain.json", facts)
    return report


def _require_some(picked: Chosen) -> None:
    """Raises UsageError: nothing is left to train on."""
    if picked.used:
        return
    if not picked.left_out:
        raise UsageError("the store holds no such episode", "agent trace list --store …")
    reasons = "; ".join(f"{reason} ({count})" for reason, count in picked.reasons.items())
    raise UsageError(
        f"none of {len(picked.left_out)} episodes can be trained on: {reasons}",
        "attach rewards or corrections, or name the policies whose episodes count",
    )


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
        picked, out=done.out, way="imitate", silent=0, steps=done.steps, finished=done.finished
    )


def _gradient(
    recipe: TrainRecipe,
    base: Path,
    picked: Chosen,
    wanted: Wanted,
    settings: Settings,
    run: Path,
    notify: Notify,
) -> RetrainReport:
    """One or more passes of the policy gradient over the episodes."""
    recipe = _off_policy(recipe, wanted)
    groups, update = by_task(picked.used), recipe.update
    per_pass = math.ceil(len(groups) / recipe.rollouts.tasks)
    context = _context(recipe, picked.used, settings, notify)
    ranks.main_first(lambda: run_folder.claim(run, recipe))
    torch.manual_seed(recipe.seed)
    learner = Learner(base, update, recipe.loss, per_pass * update.epochs)
    assessed = _assessed(learner, groups, recipe, context)
    picked.left_out += [LeftOut(one.id, one.reason) for one in assessed.dropped]
    gone = {one.id for one in assessed.dropped}
    picked.used = [one for one in picked.used if one.id not in gone]
    _require_some(picked)
    trees = lay_out(assessed, update.tree_tokens)
    steps, finished = _passes(learner, trees, per_pass, recipe, assessed, run, notify)
    out = run / "policy"
    weights, adapter = collected(learner.engine, str(base), keep=ranks.is_main())
    if ranks.is_main():
        dtype = torch.bfloat16 if update.dtype == "bfloat16" else torch.float32
        write_model(weights, base, out, dtype, adapter)
    silent = sum(not advantages.any() for advantages in assessed.credit.advantages)
    return _report(picked, out=out, way="gradient", silent=silent, steps=steps, finished=finished)


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

    Raises:
        UsageError: a reward lacks something that a log does not have.
    """
    tasks = {one.task.id: one.task for one in used}
    known = {id: bool(t.meta[KNOWN]["known"]) for id, t in tasks.items() if KNOWN in t.meta}
    given = replace(functions(recipe, settings.models_dir, notify), known=known, progress=1.0)
    promised = replace(given, promised=recipe.provides - ({Need.KNOWN} if not known else set()))
    require(recipe.reward.rewards.values(), promised)
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
    scorer = LearnerScorer(learner) if recipe.needs_probes else None
    return assess(groups, recipe, context, scorer)


def _passes(
    learner: Learner,
    trees: Sequence[Any],
    per_pass: int,
    recipe: TrainRecipe,
    assessed: Assessed,
    run: Path,
    notify: Notify,
) -> tuple[int, bool]:
    """Optimizer steps over all trees; gives how many were done, and whether they are all."""
    step, bad = 0, 0
    with graceful() as interrupted, run_folder.metrics(run, 0) as file:
        for epoch in range(recipe.update.epochs):
            order = np.random.default_rng([recipe.seed, epoch]).permutation(len(trees)).tolist()
            for batch in minibatches(trees, per_pass, order):
                stats = learner.step(batch)
                step += 1
                bad = bad + 1 if math.isnan(stats.loss) else 0
                file.add({"step": step, **of_credit(assessed), **of_updates([stats])})
                notify(f"step {step}  loss {stats.loss:.4f}")
                if bad >= recipe.update.bad_steps:
                    raise TrainingError(
                        f"the loss was no number in {bad} steps in a row",
                        "lower update.optimizer.lr",
                    )
                if ranks.anybody(interrupted(), learner.engine.device):
                    return step, False
    return step, True
