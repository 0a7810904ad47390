"""The learner under real DeepSpeed: one tree counts as its sequences do, however the work is dealt."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from kg.errors import UsageError
from rl.assessment_recipe import Anchor, Correction, LossChoice
from rl.batches import update_batch
from rl.critic import Critic
from rl.learner import tree_loss
from rl.recipe import Optimizer
from rl.sync import collected, weights_of
from rl.train_recipe import CriticChoice, Update
from rl.tree import build_tree
from tests.rl.learning import CALM, curve, digest, learner, tiny_model, trees_of

STEPS = 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(tiny):
    return curve(learner(tiny, lr=CALM), STEPS)


@pytest.mark.parametrize(
    ("zero", "offload"), [(1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
)
def test_every_zero_stage_learns_alike(tiny, expected, zero, offload):
    made = learner(tiny, zero=zero, lr=CALM, offload=offload)
    assert curve(made, STEPS) == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_a_recipe_offloads_what_its_stage_shares_out():
    for zero, offload in ((0, "optimizer"), (2, "all")):
        with pytest.raises(ValueError, match="or above"):
            Update(optimizer=Optimizer(lr=1e-3), zero=zero, offload=offload)


@pytest.mark.parametrize("lora", [False, True])
def test_weights_are_collected_one_after_the_other(tiny, lora, monkeypatch):
    """A model of many GPUs is never whole on one of them."""
    import deepspeed

    from rl.engine import adapter_of, whole

    made = learner(tiny, zero=3, lora=lora)
    made.step(update_batch(trees_of(0)))
    with whole(made.engine):
        expected = {name: one.clone() for name, one in weights_of(made.engine).items()}
        adapter = adapter_of(made.engine, "base")
        inner = {n: one.clone() for n, one in adapter.tensors.items()} if adapter else None
    asked, real = [], deepspeed.zero.GatheredParameters

    def noted(parameters, **how):
        asked.append(sum(p.ds_numel for p in parameters))
        return real(parameters, **how)

    monkeypatch.setattr(deepspeed.zero, "GatheredParameters", noted)
    found, told = collected(made.engine, "base", keep=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    assert (told is not None) is lora
    if lora:
        assert told.tensors.keys() == inner.keys()
        assert all(torch.equal(told.tensors[name], one) for name, one in inner.items())
    assert max(asked) < sum(one.numel() for one in expected.values())
    assert collected(made.engine, "base", keep=False) == ({}, None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trees_scored_together_share_what_they_begin_with(tiny, dtype):
    """Each gets the log-probabilities that it gets alone; no tree holds the beginning again."""
    rng = np.random.default_rng(0)
    shared = rng.integers(10, 400, 30)
    made = learner(tiny, dtype=dtype)
    trees = [
        build_tree([np.append(shared, rng.integers(10, 400, size)) for size in (7, 5)])
        for _ in range(3)
    ]
    asked = [(tree, np.arange(31, len(tree))) for tree in trees]
    sizes = []
    compute = made.engine.module.forward
    made.engine.module.forward = lambda ids, *rest: sizes.append(len(ids)) or compute(ids, *rest)
    together = made.many(asked)
    assert sizes == [29, 13, 13, 13]
    for one, found in zip(asked, together, strict=True):
        atol = 1e-5 if dtype == "float32" else 3e-2
        np.testing.assert_allclose(found, made.logprobs(*one), atol=atol)


def test_two_processes_learn_as_one_does(tiny, expected, tmp_path):
    """trl#2840, trl#3858: ZeRO 3 stood still; three trees on two processes need a pass more, and in
    chunks of five their projections are not equally many."""
    for found in in_processes(2, tiny, tmp_path / "losses.json", "0", "3", "3/5"):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)


def in_processes(world, folder, out, *cases):
    """Losses by several processes over gloo; see `tests.rl.learning` for the cases."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rl.learning", str(folder), str(out), str(STEPS), *cases],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            },
        )
        for rank in range(world)
    ]  # fmt: skip
    assert [process.wait(timeout=240) for process in running] == [0] * world
    return json.loads(out.read_text())


def test_a_learner_leaves_no_meeting_point_to_the_processes_that_are_started_later(tiny):
    """A training run in a child would listen where this process does."""
    learner(tiny)
    assert os.environ.keys().isdisjoint({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


def test_packed_equals_unpacked(tiny, expected):
    """A tree a trajectory (eight passes and more a step) learns as a tree a group does."""
    made = learner(tiny, lr=CALM)
    alone = trees_of(0, most=1)
    assert len(alone) > 8 > len(trees_of(0))
    assert curve(made, STEPS, most=1) == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("how", ["token-mean", "sequence-mean", "sequence-sum", "constant"])
@pytest.mark.parametrize("kind", ["ppo_clip", "gspo"])
def test_parts_add_up_to_the_whole(how, kind):
    """Per-token gradients of a batch in one tree a group and in one tree a trajectory."""
    choice = LossChoice(
        kind=kind,
        aggregation=how,
        constant=7.0,
        anchor=Anchor(coefficient=0.1),
        entropy=0.05,
        correction=Correction(high=1.5),
    )
    results = []
    for most in (10_000, 1):
        batch = update_batch(trees_of(3, most))
        grads, total = {}, 0.0
        for tree in batch.trees:
            logprobs, old, anchor, entropy = made_up(tree)
            value = tree_loss(choice, tree, batch, logprobs, old, anchor, entropy).value
            value.backward()
            total += float(value.detach())
            at = 0
            for number, reply in tree.where:
                for token in reply:
                    grads[number, int(token)] = float(logprobs.grad[at])
                    at += 1
        results.append((grads, total))
    (one, loss), (many, sum_of_parts) = results
    assert loss == pytest.approx(sum_of_parts, abs=1e-6)
    assert one.keys() == many.keys()
    assert all(one[key] == pytest.approx(many[key], abs=1e-7) for key in one)


def made_up(tree):
    """Numbers that follow from a token's place in its trajectory alone."""
    keys = [(number, int(t)) for number, reply in tree.where for t in reply]

    def draw(salt, scale=0.3):
        rows = [np.random.default_rng([salt, *key]).normal() for key in keys]
        return torch.tensor(rows, dtype=torch.float64) * scale

    logprobs = (-1 + draw(1)).requires_grad_(True)
    return logprobs, -1 + draw(2), -1 + draw(3), draw(4).abs()


def test_the_whole_step_at_once_equals_eight_parts(tiny, expected):
    """Batch 8 x accumulation 1 and batch 1 x accumulation 8 are one step."""
    batch = update_batch(trees_of(0, groups=1, size=8, turns=(2, 3)))
    parts = update_batch(trees_of(0, most=1, groups=1, size=8, turns=(2, 3)))
    assert len(batch.trees) == 1
    assert len(parts.trees) == 8
    one, many = learner(tiny), learner(tiny)
    whole, dealt = one.step(batch), many.step(parts)
    assert whole.loss == pytest.approx(dealt.loss, abs=1e-6)
    assert whole.figures["grad_norm"] == pytest.approx(dealt.figures["grad_norm"], rel=1e-4)
    for (name, a), b in zip(digest(one).items(), digest(many).values(), strict=True):
        assert a == pytest.approx(b, rel=1e-4), name


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_many_passes_in_bfloat16_add_up_in_float32(tiny, zero):
    """The mean over 300 equal trees has the gradient of one; a bfloat16 sum stands still on the way."""
    [tree] = trees_of(0, groups=1, size=2)
    made = learner(tiny, zero=zero, dtype="bfloat16", lr=1e-9)
    one, many = (made.step(update_batch([tree] * n)).figures["grad_norm"] for n in (1, 300))
    exact = learner(tiny).step(update_batch([tree])).figures["grad_norm"]
    assert many == pytest.approx(one, rel=1e-2)
    assert many == pytest.approx(exact, rel=2e-2)


def test_lora_moves_the_adapters_alone_and_its_anchor_is_the_base(tiny):
    loss = LossChoice(anchor=Anchor(coefficient=0.1))
    made = learner(tiny, lora=True, loss=loss)
    tree = trees_of(0)[0]
    [before] = made.scored([tree])
    for step in range(3):
        stats = made.step(update_batch(trees_of(step)))
    assert stats.figures["kl"] > 0
    [anchor], [now] = made.scored([tree], anchor=True), made.scored([tree])
    assert np.abs(anchor - before).max() < 1e-6
    assert np.abs(now - before).max() > 1e-3
    frozen = [n for n, p in made.engine.module.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("lora_" not in name for name in frozen)


def test_full_weights_keep_an_anchor_of_their_own(tiny):
    made = learner(tiny, loss=LossChoice(anchor=Anchor(coefficient=0.1)))
    tree = trees_of(0)[0]
    [before] = made.scored([tree])
    made.step(update_batch(trees_of(0)))
    [anchor], [now] = made.scored([tree], anchor=True), made.scored([tree])
    assert np.abs(anchor - before).max() < 1e-6
    assert np.abs(now - before).max() > 1e-3


def test_recomputed_activations_change_nothing(tiny, expected):
    assert curve(learner(tiny, lr=CALM, checkpointing=True), 5) == pytest.approx(
        expected[:10], rel=1e-3, abs=1e-5
    )


def test_a_projection_in_chunks_has_the_same_gradient(tiny):
    whole, chunked = learner(tiny), learner(tiny)
    chunked.engine.module.chunk = 5
    batch = update_batch(trees_of(0))
    assert whole.step(batch).loss == pytest.approx(chunked.step(batch).loss, abs=1e-6)
    for (name, a), b in zip(digest(whole).items(), digest(chunked).values(), strict=True):
        assert a == pytest.approx(b, rel=1e-5), name


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_step_without_a_number_changes_nothing(tiny, zero):
    """The next step is that of a learner that never saw the broken batch."""
    made, clean = learner(tiny, zero=zero), learner(tiny, zero=zero)
    good, bad = update_batch(trees_of(0)), trees_of(1)
    bad[1].advantages[0] = np.nan
    made.step(good), clean.step(good)
    before = weights(made)
    stats = made.step(update_batch(bad))
    assert not stats.applied
    assert np.isnan(stats.loss)
    assert [id(tree) for tree in stats.broken] == [id(bad[1])]
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())
    after = made.step(update_batch(trees_of(2))).loss, clean.step(update_batch(trees_of(2))).loss
    assert after[0] == pytest.approx(after[1], abs=1e-6)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_all_trees_of_a_step_are_kept_where_the_gradient_alone_is_no_number(tiny, zero):
    made = learner(tiny, zero=zero)
    made.step(update_batch(trees_of(0)))
    before, trees = weights(made), trees_of(1)
    parameter = next(p for p in made.engine.module.parameters() if p.requires_grad)
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    stats = made.step(update_batch(trees))
    hook.remove()
    assert not stats.applied
    assert np.isnan(stats.loss)
    assert [id(tree) for tree in stats.broken] == [id(tree) for tree in trees]
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())
    assert made.step(update_batch(trees_of(2))).broken == ()


def weights(made):
    from rl.engine import whole

    with whole(made.engine):
        return {name: tensor.clone() for name, tensor in weights_of(made.engine).items()}


def windowed(tiny, folder, window):
    """The same model, its second layer seeing so many tokens back."""
    shutil.copytree(tiny, folder)
    config = json.loads((tiny / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"]
    config |= {"sliding_window": window, "use_sliding_window": True, "layer_types": kinds}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_window_narrower_than_the_context_is_refused(tiny, tmp_path):
    """Attention over trees knows no window: it would train another model than the engine runs."""
    narrow = windowed(tiny, tmp_path / "narrow", 64)
    with pytest.raises(UsageError, match="sliding_window is 64"):
        learner(narrow)
    steady = Optimizer(lr=1e-3)
    with pytest.raises(UsageError, match="sliding_window is 64"):
        Critic(narrow, CriticChoice(optimizer=steady), Update(optimizer=steady), 1)
    reads = json.loads((tiny / "config.json").read_text())["max_position_embeddings"]
    learner(windowed(tiny, tmp_path / "wide", reads))


def test_a_batch_without_an_advantage_is_skipped_and_counted(tiny):
    made = learner(tiny)
    before = weights(made)
    stats = made.step(update_batch(trees_of(0, scale=0.0)))
    assert not stats.applied
    assert stats.figures["silent"] == 3
    assert stats.figures["passes"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(made).items())


def test_ratios_are_taken_to_the_policy_before_the_step(tiny):
    made = learner(tiny)
    trees = trees_of(0)
    old = {id(tree): values for tree, values in zip(trees, made.scored(trees), strict=True)}
    first = made.step(update_batch(trees), old)
    second = made.step(update_batch(trees), old)
    assert first.figures["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert second.figures["ratio_max"] > 1.01
    assert second.figures["old_kl"] > first.figures["old_kl"]


def test_a_step_makes_likelier_what_was_better(tiny):
    made = learner(tiny)
    trees = trees_of(0)
    before = made.scored(trees)
    made.step(update_batch(trees))
    after = made.scored(trees)
    moved = [
        float((tree.advantages * (new - old)).sum())
        for tree, new, old in zip(trees, after, before, strict=True)
    ]
    assert min(moved) > 0
