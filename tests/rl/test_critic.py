"""The critic: values on token trees, learnt from returns, saved and restored with the policy."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from kg.errors import UsageError
from rl.batches import lay_out
from rl.checkpoint import Checkpoint, CheckpointError
from rl.critic import Critic
from rl.recipe import Lora, Optimizer
from rl.run_curves import CURVES, lines_of
from rl.run_history import read_history
from rl.train_recipe import CriticChoice, Update
from tests.rl.learning import assessed, learner, tiny_model
from tests.rl.training_run import Printed, recipe, run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("critic") / "tiny")


def critic(folder, most=10_000, zero=0, dtype="float32", **choice):
    """One whose learning rate stays."""
    steady = Optimizer(lr=1e-2, warmup=0.0, final=1.0)
    update = Update(optimizer=steady, tree_tokens=most, zero=zero, dtype=dtype)
    torch.manual_seed(1)
    return Critic(folder, CriticChoice(**{"optimizer": steady, **choice}), update, 100)


def returns(groups):
    """By the place of a token in its trajectory and whether the one before it is odd: a critic can see
    both."""
    flat = [t for group in groups for t in group]

    def of(t):
        before = np.concatenate([[0], t.token_ids[:-1]])
        values = (before % 2) - np.linspace(0, 1, len(before))
        return np.where(t.sampled, values, np.nan)

    return [of(t) for t in flat]


def batch(step=1, most=10_000):
    made = assessed(step)
    return made.groups, lay_out(made, most), returns(made.groups)


def test_a_new_critic_expects_nothing(tiny):
    groups, trees, targets = batch()
    made = critic(tiny)
    assert all(not values.any() for values in made.values(groups))
    told = made.fit(trees, targets, (0, 1))
    known = np.concatenate([row[np.isfinite(row)] for row in targets])
    assert told.error == pytest.approx(float((known**2).mean()), rel=1e-5)
    assert told.explained == pytest.approx(0, abs=1e-6)
    assert told.updates[0].loss == pytest.approx(told.error / 2, rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=8, alpha=16)])
def test_it_learns_what_is_still_to_come(tiny, lora):
    groups, trees, targets = batch()
    made = critic(tiny, lora=lora)
    told = [made.fit(trees, targets, (0, step)) for step in range(30)]
    assert told[-1].error < 0.3 * told[0].error
    assert told[-1].explained > 0.5
    for t, values, wanted in zip(
        [t for g in groups for t in g], made.values(groups), targets, strict=True
    ):
        assert not values[~t.sampled].any()
        assert np.corrcoef(values[t.sampled], wanted[t.sampled])[0, 1] > 0.6


def test_a_groups_tree_gives_the_values_of_its_trajectories_alone(tiny):
    groups, trees, targets = batch()
    together, alone = critic(tiny), critic(tiny, most=64)
    for made in (together, alone):
        for step in range(3):
            made.fit(trees, targets, (0, step))
    for one, other in zip(together.values(groups), alone.values(groups), strict=True):
        assert np.abs(one - other).max() < 1e-5
    assert any(values.any() for values in together.values(groups))


def test_where_nothing_is_to_be_learnt_nothing_is(tiny):
    groups, trees, targets = batch()
    made = critic(tiny)
    assert made.fit(trees, [np.full_like(row, np.nan) for row in targets], (0, 1)).updates == ()
    first = [row if i == 0 else np.full_like(row, np.nan) for i, row in enumerate(targets)]
    told = made.fit(trees, first, (0, 1))
    assert told.error == pytest.approx(float(np.nanmean(first[0] ** 2)), rel=1e-5)
    assert groups


def test_a_clipped_value_goes_no_further(tiny):
    _, trees, targets = batch()
    free, held = (critic(tiny, epochs=12, clip=clip) for clip in (None, 0.02))
    first, second = (made.fit(trees, targets, (0, 1)) for made in (free, held))
    assert first.updates[0].loss == pytest.approx(second.updates[0].loss, rel=1e-5)
    assert second.updates[-1].loss > 1.2 * first.updates[-1].loss


@pytest.mark.parametrize("zero", [1, 3])
def test_zero_stages_learn_the_same(tiny, zero):
    _, trees, targets = batch()
    plain, parted = critic(tiny), critic(tiny, zero=zero)
    for step in range(3):
        one, other = (made.fit(trees, targets, (0, step)) for made in (plain, parted))
        assert other.error == pytest.approx(one.error, rel=1e-3)
        norms = [told.updates[0].figures["grad_norm"] for told in (one, other)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_a_checkpoint_holds_it_beside_the_policy(tiny, tmp_path):
    groups, trees, targets = batch()
    policy, first, second = learner(tiny), critic(tiny), critic(tiny)
    kept = Checkpoint(tmp_path, keep=1)
    first.fit(trees, targets, (0, 1))
    assert kept.save(policy.engine, 1, {"mark": 7}, {"critic": first.engine})
    assert kept.load(policy.engine, {"critic": second.engine})["mark"] == 7
    for step in (2, 3):  # its optimizer is the same too
        told = [made.fit(trees, targets, (0, step)) for made in (first, second)]
        assert told[0].error == told[1].error
    assert all(map(np.array_equal, first.values(groups), second.values(groups)))
    assert kept.save(policy.engine, 2, {})
    with pytest.raises(CheckpointError, match=r"broken|not whole"):
        kept.load(policy.engine, {"critic": second.engine})


def test_a_critic_is_given_to_those_who_read_it_and_to_no_others():
    lr = {"optimizer": {"lr": 1e-4}}
    with pytest.raises(UsageError, match="turn_gae reads values"):
        recipe(credit={"estimator": "turn_gae"})
    with pytest.raises(UsageError, match="igpo reads no values"):
        recipe(critic=lr)
    assert recipe(credit={"estimator": "turn_gae"}, critic=lr).critic.optimizer.lr == 1e-4


class Stopped(Printed):
    """Presses Ctrl-C while the first episode is played."""

    pressed = False

    def stage(self, name, done, total):
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_learns_with_it_and_goes_on_where_it_was(tmp_path):
    """To the last bit: one episode at a time is what makes the engine repeatable."""
    steady = {"optimizer": {"lr": 1e-3, "warmup": 0.0, "final": 1.0}, "minibatches": 2}
    changes = {
        "steps": 2,
        "rollouts": {"engine": "transformers", "tasks": 1, "size": 3, "concurrency": 1},
        "rewards": {"searches": {"reward": "tool_cost", "options": {"price": 0.2, "most": 1.0}}},
        "credit": {"estimator": "bilevel_gae"},
        "critic": steady,
        "checkpoints": {"every": 9},
    }

    def told(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = map(json.loads, lines)
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]

    assert run(tmp_path / "whole", tmp_path / "home", **changes).finished
    assert run(tmp_path / "cut", tmp_path / "home", Stopped(), **changes).interrupted
    assert run(tmp_path / "cut", tmp_path / "home", **changes).finished
    rows = told("whole")
    assert told("cut") == rows
    assert [row["critic/skipped"] for row in rows] == [0, 0]
    assert rows[0]["critic/explained"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["critic/explained"] != 0
    [curve] = [one for one in CURVES if one.title == "critic"]
    assert [len(line) for line in lines_of(read_history(tmp_path / "whole"), curve).values()] == [2]
