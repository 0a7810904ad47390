"""`agent doctor train`: would a run of this recipe learn from what it samples? Measured beforehand.

The recipe's own policy, engine and learner play a few episodes in a small world, make one step and
deliver it; each part is held against what it must be (`rl.checkup`). Nothing of it is kept, and the
recipe's own tasks and reward models are not needed.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agent.doctor import Check
from agent.graph import Setup
from agent.policies.base import Policy
from agent.policies.catalog import resolve
from agent.settings import Settings, isolated_settings
from agent.trajectory import Trajectory
from kg.errors import TurnwiseError, UsageError
from rl import checkup, ranks
from rl.assess import assess
from rl.assessment_recipe import Assessment, CreditChoice
from rl.batches import TreeBatch, lay_out, update_batch
from rl.checkup import HeadWatch
from rl.critic import Critic, Floats
from rl.curriculum import Drawn
from rl.learner import Learner
from rl.precision import settled
from rl.question_sets import Notify, QuestionSet, load_sets, open_sets
from rl.recipe import Worlds
from rl.rewards import Part
from rl.rollouts import Stage, groups_of
from rl.sampler import hand_over, open_sampler
from rl.step import UpdateStats
from rl.sync import Canary, SyncError
from rl.train_recipe import Tasks, TrainRecipe

_WORLD = Worlds(count=1, first_seed=910001, entities=60, questions=60)
_KINDS = ("1hop", "2hop")
_TASKS, _SIZE = 4, 8


@dataclass
class Patient:
    """What is examined: in the main process all of it, in others all but the policy.

    Attributes:
        recipe: of the run.
        learner: with the weights that the run begins with.
        policy: that samples.
        base: the model folder of both.
        setup: of the episodes.
        groups: what was played, failed episodes left out.
        trees: of their tokens. Every token has an advantage, also those that were not sampled: what
            carries loss nevertheless is the layout's choice.
    """

    recipe: TrainRecipe
    learner: Learner
    policy: Policy | None
    base: Path
    setup: Setup | None
    groups: Sequence[Sequence[Trajectory]]
    trees: tuple[TreeBatch, ...]


def examine(recipe: TrainRecipe, settings: Settings, notify: Notify) -> list[Check]:
    """Every check that can be made; where a part does not work, that is the last one.

    Under a launcher every process calls it, and gets the same list.

    Args:
        recipe: of the run.
        settings: folders of this machine.
        notify: gets one line a stage.

    Raises:
        UsageError: there is no such policy, or it is a server's, whose weights are not ours.
        PolicyUnavailableError: the policy cannot be had.
    """
    recipe = settled(recipe)
    if "://" in recipe.base:
        raise UsageError(
            "a server's weights cannot be trained", "--policy NAME, or the folder of a model"
        )
    ranks.join() if ranks.launched() else None
    base = ranks.main_first(lambda: resolve(recipe.base, settings.models_dir, notify))
    torch.manual_seed(recipe.seed)
    found: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(_examined(recipe, base, settings, Path(folder), notify, found))
        except Exception as error:
            found.append(_broken(error))
    return ranks.shared(found)


def _broken(error: Exception) -> Check:
    """What ended the examination."""
    if isinstance(error, TurnwiseError):
        return Check("stack", "fail", error.message, error.hint or "agent doctor")
    return Check("stack", "fail", f"{type(error).__name__}: {error}", "agent --debug doctor train")


async def _examined(
    recipe: TrainRecipe,
    base: Path,
    settings: Settings,
    folder: Path,
    notify: Notify,
    found: list[Check],
) -> None:
    notify(f"starting {recipe.rollouts.engine} and the learner")
    learner = learner_of(recipe, base)
    policy = None
    if ranks.is_main():
        policy = open_sampler(recipe.rollouts, recipe.base, base, settings.api_key)
    try:
        setup, groups, trouble = None, None, None
        if policy is not None:
            try:
                opened = _opened(recipe, settings, folder, policy, notify)
                setup = opened.setup
                found.append(checkup.template_check(learner.template, setup.format))
                groups = await play(recipe, opened, policy)
            except Exception as error:  # told once the other processes have been told
                trouble = error
        groups = ranks.shared(groups)
        if trouble is not None:
            raise trouble
        if groups is not None:
            trees = laid_out(groups, recipe.update.tree_tokens)
            patient = Patient(recipe, learner, policy, base, setup, groups, trees)
            found += await of_rollouts(patient)
            found += await of_step(patient, folder / "policy")
            found += of_critic(patient)
    finally:
        if policy is not None:
            await policy.aclose()


def learner_of(recipe: TrainRecipe, base: Path) -> Learner:
    """The recipe's learner without an entropy bonus, whose gradient is of all tokens at once."""
    return Learner(base, recipe.update, recipe.loss.model_copy(update={"entropy": 0.0}), 1)


def _opened(
    recipe: TrainRecipe, settings: Settings, folder: Path, policy: Policy, notify: Notify
) -> QuestionSet:
    """A small world with the recipe's tools and budgets; words find its passages well enough."""
    asked = isolated_settings(**recipe.rollouts.agent, home=settings.home)
    search = asked.search.model_copy(update={"mode": "lexical"})
    own = asked.model_copy(update={"search": search})
    tasks = Tasks(worlds=_WORLD, kinds=_KINDS, limit=_TASKS)
    [opened] = open_sets(load_sets(tasks, own, "", folder, notify), own, policy, notify)
    return opened


async def play(recipe: TrainRecipe, opened: QuestionSet, policy: Policy) -> list[list[Trajectory]]:
    """Groups of rollouts as a step of the recipe plays them, fewer of them.

    Raises:
        PolicyUnavailableError: the policy failed in every episode.
    """
    rollouts = recipe.rollouts.model_copy(update={"tasks": _TASKS, "size": _SIZE})
    drawn = [Drawn(opened, task) for task in opened.tasks]
    plays = groups_of(0, drawn, rollouts, recipe.seed)
    done = await Stage(policy, rollouts).play(plays)
    groups = [done[i : i + _SIZE] for i in range(0, len(done), _SIZE)]
    return [[t for t in group if t.turns and t.has_tokens] for group in groups]


def laid_out(groups: Sequence[Sequence[Trajectory]], most: int) -> tuple[TreeBatch, ...]:
    """The run's own trees, with an advantage of 1 on every token of a trajectory, sampled or not.

    All the same, for opposite ones of rollouts that begin alike would cancel.
    """
    answer = Assessment(
        rewards={"answer": Part(reward="f1")}, credit=CreditChoice(estimator="grpo")
    )
    found = assess([group for group in groups if group], answer)
    ones = tuple(np.ones(len(t.token_ids)) for t in found.trajectories)
    return lay_out(replace(found, credit=replace(found.credit, advantages=ones)), most)


async def of_rollouts(patient: Patient) -> list[Check]:
    """What the episodes show, before anything is learnt; every process must call it."""
    measured = checkup.measure(patient.learner, patient.trees)
    if patient.policy is None or patient.setup is None:
        return []
    groups, trees, template = patient.groups, patient.trees, patient.learner.template
    return [
        checkup.stop_check(groups, trees, template, patient.setup.format.stop),
        checkup.mask_check(groups, trees, template),
        checkup.sampling_check(patient.setup.sampling, groups, measured),
        checkup.gap_check(measured, await _kinds(patient)),
    ]


async def _kinds(patient: Patient) -> set[str]:
    """Types of the engine's tensors and of the learner's."""
    assert patient.policy is not None
    live = await patient.policy.fingerprints()
    return {told.dtype for told in live.values()} | {patient.recipe.update.dtype}


async def of_step(patient: Patient, folder: Path) -> list[Check]:
    """One optimizer step and its delivery; every process must call it.

    Args:
        patient: its learner and its policy have other weights afterwards.
        folder: where the weights are written.
    """
    engine, watch = patient.learner.engine, HeadWatch()
    before = engine.micro_steps
    batch = update_batch(patient.trees)
    with watch.on(patient.learner):
        stats = patient.learner.step(batch)
    told = ranks.gathered((engine.micro_steps - before, watch.pushed))
    sync = await _delivered(patient, folder, stats)
    if patient.policy is None:
        return []
    pushed = sum((counts for _, counts in told), Counter[int]())
    return [
        checkup.gradient_check(patient.groups, pushed, patient.trees),
        checkup.passes_check([passes for passes, _ in told], len(patient.trees)),
        sync,
    ]


def of_critic(patient: Patient) -> list[Check]:
    """One batch of the critic, where the recipe has one; every process must call it."""
    recipe = patient.recipe
    if recipe.critic is None:
        return []
    critic = Critic(patient.base, recipe.critic, recipe.update, 1)
    told = critic.fit(patient.trees, *_returns_of_one(patient.trees), (recipe.seed, 0))
    moved = any(values.any() for values in critic.values(patient.groups))
    if patient.policy is None:
        return []
    detail = f"{len(told.updates)} steps from values that were off by {told.mse:.3g} (mean square)"
    if moved and all(one.applied for one in told.updates):
        return [Check("critic", "ok", detail)]
    return [Check("critic", "fail", f"it learnt nothing: {detail}", "change critic.optimizer.lr")]


def _returns_of_one(trees: Sequence[TreeBatch]) -> tuple[list[Floats], list[Floats]]:
    """Values of a new critic, 0, and returns of 1, per trajectory at its loss tokens."""
    ends: dict[int, int] = {}
    for number, at in (one for tree in trees for one in tree.where):
        ends[number] = max(ends.get(number, 0), int(at.max(initial=-1)) + 1)
    sizes = [ends.get(number, 0) for number in range(max(ends, default=-1) + 1)]
    return [np.zeros(size) for size in sizes], [np.ones(size) for size in sizes]


async def _delivered(patient: Patient, folder: Path, stats: UpdateStats) -> Check:
    """Whether the step reached the engine: every tensor's fingerprint, and the canary."""
    policy, learner = patient.policy, patient.learner
    before = await policy.fingerprints() if policy is not None else {}
    canary, rollouts = Canary.of(learner.template), patient.recipe.rollouts
    try:
        told = await hand_over(learner.engine, policy, patient.base, folder, rollouts, canary)
    except SyncError as error:
        return Check("sync", "fail", error.message, error.hint)
    if policy is None or told is None:
        return Check("sync", "ok", "the main process tells")
    after = await policy.fingerprints()
    moved = sum(before[name] != one for name, one in after.items() if one.readable)
    detail = (
        f"{told.tensors} tensors equal the learner's, {moved} of them moved by the step; "
        f"{len(told.by_canary)} cannot be read back and were overwritten; "
        f"the canary's gap is {told.gap:.2g} nats"
    )
    if not stats.applied or not (moved or told.by_canary):
        norm = stats.figures["grad_norm"]
        hint = "raise update.optimizer.lr" if math.isfinite(norm) else "lower update.optimizer.lr"
        return Check("sync", "fail", f"the step changed nothing (gradient norm {norm:.3g})", hint)
    return Check("sync", "ok", detail)
