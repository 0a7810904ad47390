"""The critic: values on token trees, learnt from returns, saved and restored with the policy."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kg.errors import UsageError
from rl.batches import lay_out
from rl.checkpoint import Checkpoint, CheckpointError
from rl.critic import Critic
from rl.recipe import Lora, Optimizer
from rl.run_curves import CURVES, lines_of
from rl.run_history import read_history
from rl.train_recipe import CriticChoice, Update, load_train
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


def taught(made, given, seed):
    """One batch, as a run teaches it: the values first."""
    groups, trees, targets = given
    return made.fit(trees, made.values(groups), targets, seed)


def flat(groups):
    return [t for group in groups for t in group]


def test_a_new_critic_expects_nothing(tiny):
    given, made = batch(), critic(tiny)
    assert all(not values.any() for values in made.values(given[0]))
    told = taught(made, given, (0, 1))
    known = np.concatenate([row[np.isfinite(row)] for row in given[2]])
    assert told.mse == pytest.approx(float((known**2).mean()), rel=1e-5)
    assert told.explained_variance == pytest.approx(0, abs=1e-6)
    assert told.updates[0].loss == pytest.approx(told.mse / 2, rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=8, alpha=16)])
def test_it_learns_what_is_still_to_come(tiny, lora):
    given, made = batch(), critic(tiny, lora=lora)
    told = [taught(made, given, (0, step)) for step in range(30)]
    assert told[-1].mse < 0.3 * told[0].mse
    assert told[-1].explained_variance > 0.5
    groups, _, targets = given
    for t, values, wanted in zip(flat(groups), made.values(groups), targets, strict=True):
        assert not values[~t.sampled].any()
        assert np.corrcoef(values[t.sampled], wanted[t.sampled])[0, 1] > 0.6


def test_a_value_is_that_before_the_token_in_the_context_of_its_call(tiny):
    """As transformers computes it without trees: the head on the hidden state of the token before."""
    given, made = batch(), critic(tiny)
    for step in range(3):
        taught(made, given, (0, step))
    plain = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="sdpa").float().eval()
    state = made.engine.module.model.state_dict()
    plain.load_state_dict(state, strict=False)
    head = made.engine.module.head
    for t, values in zip(flat(given[0]), made.values(given[0]), strict=True):
        for turn in t.turns:
            reply = np.arange(turn.reply.start, turn.reply.stop)
            if not turn.sampled or not len(reply):
                continue
            ids = np.concatenate([t.prompt_of(turn), t.token_ids[reply]]).astype(np.int64)
            with torch.no_grad():
                hidden = plain.model(torch.from_numpy(ids)[None]).last_hidden_state[0]
                found = head(hidden)[:, 0].numpy()
            expected = found[len(ids) - len(reply) - 1 : -1]
            assert np.abs(values[reply] - expected).max() < 1e-5
            assert np.abs(expected).max() > 1e-3


def test_a_groups_tree_gives_the_values_of_its_trajectories_alone(tiny):
    given = batch()
    together, alone = critic(tiny), critic(tiny, most=64)
    for made in (together, alone):
        for step in range(3):
            taught(made, given, (0, step))
    for one, other in zip(together.values(given[0]), alone.values(given[0]), strict=True):
        assert np.abs(one - other).max() < 1e-5
    assert any(values.any() for values in together.values(given[0]))


def test_where_nothing_is_to_be_learnt_nothing_is(tiny):
    groups, trees, targets = batch()
    made, nothing = critic(tiny), [np.full_like(row, np.nan) for row in targets]
    assert taught(made, (groups, trees, nothing), (0, 1)).updates == ()
    told = taught(made, (groups, trees, [targets[0], *nothing[1:]]), (0, 1))
    assert told.mse == pytest.approx(float(np.nanmean(targets[0] ** 2)), rel=1e-5)


def test_the_loss_is_the_larger_one_of_the_value_and_the_clipped_value(tiny):
    """As PPO has it; what the values are held to is made up here, those of a new critic are 0."""
    _, trees, targets = batch()
    chance, clip = np.random.default_rng(0), 0.3
    old = [chance.normal(size=len(row)) for row in targets]
    [told] = critic(tiny, value_clip=clip).fit(trees, old, targets, (0, 1)).updates
    seen = [np.isfinite(row) for row in targets]
    target, before = (
        np.concatenate([row[mask] for row, mask in zip(rows, seen, strict=True)])
        for rows in (targets, old)
    )
    held = before + np.clip(0 - before, -clip, clip)
    expected = 0.5 * np.maximum(target**2, (held - target) ** 2).mean()
    assert told.loss == pytest.approx(expected, rel=1e-5)
    assert expected > 1.1 * 0.5 * (target**2).mean()


def test_values_are_not_rounded_to_bfloat16(tiny):
    given, made = batch(), critic(tiny, dtype="bfloat16")
    for step in range(3):
        taught(made, given, (0, step))
    values = np.concatenate(made.values(given[0]))
    rounded = torch.from_numpy(values).to(torch.bfloat16).double().numpy()
    assert (values != rounded).mean() > 0.3


@pytest.mark.parametrize("zero", [1, 3])
def test_zero_stages_learn_the_same(tiny, zero):
    given, plain, parted = batch(), critic(tiny), critic(tiny, zero=zero)
    for step in range(3):
        one, other = (taught(made, given, (0, step)) for made in (plain, parted))
        assert other.mse == pytest.approx(one.mse, rel=1e-3)
        norms = [told.updates[0].figures["grad_norm"] for told in (one, other)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_a_checkpoint_holds_it_beside_the_policy(tiny, tmp_path):
    given = batch()
    policy, first, second = learner(tiny), critic(tiny), critic(tiny)
    kept = Checkpoint(tmp_path, keep=1)
    taught(first, given, (0, 1))
    assert kept.save(policy.engine, 1, {"mark": 7}, {"critic": first.engine})
    assert kept.load(policy.engine, {"critic": second.engine})["mark"] == 7
    for step in (2, 3):  # its optimizer is the same too
        told = [taught(made, given, (0, step)) for made in (first, second)]
        assert told[0].mse == told[1].mse
    assert all(map(np.array_equal, first.values(given[0]), second.values(given[0])))
    assert kept.save(policy.engine, 2, {})
    with pytest.raises(CheckpointError, match=r"broken|not whole"):
        kept.load(policy.engine, {"critic": second.engine})


def test_a_critic_is_given_to_those_who_read_it_and_to_no_others():
    lr = {"optimizer": {"lr": 1e-4}}
    with pytest.raises(UsageError, match="turn_gae reads values"):
        recipe(credit={"estimator": "turn_gae"})
    with pytest.raises(UsageError, match="igpo reads no values"):
        recipe(critic=lr)
    with pytest.raises(UsageError, match="dropout"):
        recipe(credit={"estimator": "turn_gae"}, critic={**lr, "lora": {"dropout": 0.1}})
    with pytest.raises(UsageError, match="give null"):
        load_train("ppo", ["credit={estimator: rloo}"])
    without = load_train("ppo", ["credit={estimator: rloo}", "critic=null", "rollouts.size=4"])
    assert without.critic is None
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
        return [
            {k: v for k, v in row.items() if not k.startswith(("seconds", "speed/", "resident"))}
            for row in rows
        ]

    assert run(tmp_path / "whole", tmp_path / "home", **changes).finished
    assert run(tmp_path / "cut", tmp_path / "home", Stopped(), **changes).interrupted
    assert run(tmp_path / "cut", tmp_path / "home", **changes).finished
    rows = told("whole")
    assert told("cut") == rows
    assert [row["critic/skipped"] for row in rows] == [0, 0]
    assert rows[0]["critic/explained_variance"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["critic/explained_variance"] != 0
    [curve] = [one for one in CURVES if one.title == "critic"]
    assert [len(line) for line in lines_of(read_history(tmp_path / "whole"), curve).values()] == [2]
