"""The same numbers as TRL, by running its own trainer methods on recorded rollouts of the micro policy,
and on made-up ones where a corner is wanted that they do not have.

TRL's trainer is a stand-in whose settings are given and whose policy answers with log-probabilities from
a table. Skipped where trl is not installed.
"""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from rl.assess import assess
from rl.assessment_recipe import Assessment, CreditChoice
from rl.credit import Batch, estimate
from rl.losses import (
    Reduction,
    Tokens,
    entropy_from_logits,
    gspo,
    importance_weights,
    kl,
    ppo_clip,
)
from rl.rewards import Part

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer", exc_type=ImportError)
trl_utils = pytest.importorskip("trl.trainer.utils", exc_type=ImportError)
GRPO, RLOO = grpo_trainer.GRPOTrainer, rloo_trainer.RLOOTrainer

CPU = torch.device("cpu")
EPS = 1e-4  # TRL's own, added to every std


@pytest.fixture(autouse=True)
def nobodys_rank(monkeypatch):
    """accelerate, which TRL asks, takes a process that has trained before for one of several."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def trainer(**settings):
    """A stand-in for a trainer: plain text, one process, no reference model."""
    made = MagicMock()
    made.accelerator.device, made.accelerator.process_index = CPU, 0
    made.accelerator.num_processes = 1
    made.accelerator.gather = lambda x: x
    made.accelerator.reduce = lambda x, reduction: x
    made.model.training = True
    plain = {
        "environment_factories": None, "environments": None, "tools": None, "_is_vlm": False,
        "pad_to_multiple_of": None, "mask_truncated_completions": False, "beta": 0.0,
        "use_vllm": False, "num_iterations": 1, "reward_func_names": ["r"],
        "multi_objective_aggregation": "sum_then_normalize", "scale_rewards": "group",
        "log_multimodal": False, "reward_clip_range": None, "normalize_advantages": False,
        "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "importance_sampling_level": "token", "loss_type": "dapo", "epsilon_low": 0.2,
        "epsilon_high": 0.28, "_entropy_bonus_enabled": False, "max_completion_length": 16,
        "current_gradient_accumulation_steps": 1, "_pending_extra_logs": {}, "_pending_metrics": {},
        "vllm_importance_sampling_correction": False,
    }  # fmt: skip
    for name, value in {**plain, **settings}.items():
        setattr(made, name, value)
    made._tokenizer.pad_token_id = 0
    made.args.gradient_accumulation_steps = made.args.steps_per_generation = 1
    made.args.delta = settings.get("delta")
    made.reward_weights = torch.ones(1)
    return made


def trl_rollouts(kind, rewards, size, lengths=None, sampling=None, old=None, **settings):
    """What TRL hands to its loss, for these rewards of groups of `size` completions."""
    made = trainer(num_generations=size, **settings)
    lengths = [1] * len(rewards) if lengths is None else lengths
    prompts, completions = [[1]] * len(rewards), [[2] * length for length in lengths]
    made._calculate_rewards.return_value = torch.tensor(rewards, dtype=torch.float64)[:, None]
    table = torch.zeros(len(rewards), max(lengths)) if old is None else old
    made._get_per_token_logps_and_entropies.return_value = (table, None, None)
    texts = ["x"] * len(rewards)
    if kind is RLOO:
        made._generate.return_value = (prompts, completions, texts)
    else:
        rest = (sampling, {}, None, None)
        made._generate.return_value = (prompts, completions, None, texts, *rest)
    return kind._generate_and_score_completions(made, [{"prompt": "q"}] * len(rewards))


def advantages(name, rewards, size, **options):
    rows = [[float(r)] for r in rewards]
    batch = Batch.ragged([i // size for i in range(len(rows))], {"r": rows})
    return [float(a[0]) for a in estimate(name, batch, **options).advantages]


@pytest.fixture(scope="module")
def recorded(played):
    """The recorded groups under rewards of every turn: the batch, and padded rows of the tokens behind
    each first prompt, with the tools' among them, as TRL holds completions."""
    rewards = {
        "answer": Part(reward="f1"),
        "calls": Part(reward="tool_cost"),
        "format": Part(reward="format", options={"place": "turn"}, weight=0.25),
    }
    found = assess(
        played.groups, Assessment(rewards=rewards, credit=CreditChoice(estimator="turn_group"))
    )
    starts = [t.turns[0].reply.start for t in found.trajectories]
    longest = max(len(t.token_ids) - s for t, s in zip(found.trajectories, starts, strict=True))
    shape = (len(starts), longest)
    mask, old, advantage = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for i, (one, start) in enumerate(zip(found.trajectories, starts, strict=True)):
        size = len(one.token_ids) - start
        mask[i, :size] = torch.from_numpy(one.sampled[start:].astype(np.float64))
        old[i, :size] = torch.from_numpy(np.nan_to_num(one.logprobs[start:].astype(np.float64)))
        advantage[i, :size] = torch.from_numpy(found.credit.advantages[i][start:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    moved = (old + 0.3 * noise).requires_grad_()
    return SimpleNamespace(
        batch=found.batch,
        totals=found.batch.rewards.sum(axis=1).tolist(),
        rows=(moved, old, advantage, mask.long()),
    )


def test_recorded_rollouts_have_tool_tokens_and_rewards_that_differ(recorded):
    _, old, advantage, mask = recorded.rows
    assert len(recorded.totals) == 16
    assert len({round(total, 6) for total in recorded.totals}) > 2
    assert mask.sum(1).min() > 0
    inside = (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0)
    assert ((mask == 0) & inside).any()  # tokens of tools between sampled ones
    assert (old[mask.bool()] < 0).any()
    assert (advantage != 0).any()


REWARDS = [1, 0, 0, 0, 1, 1, 1, 0, 0.3, -2.0, 0.7, 0.1, 0.5, 0.5, 0.5, 0.5]
PAIRS = {
    "group": ("grpo", {"eps": EPS}),
    "none": ("dr_grpo", {}),
    "batch": ("lite_ppo", {"eps": EPS}),
}


@pytest.mark.parametrize("scale", PAIRS)
def test_group_advantages_of_recorded_rollouts(recorded, scale):
    name, options = PAIRS[scale]
    theirs = trl_rollouts(GRPO, recorded.totals, 4, scale_rewards=scale)["advantages"].tolist()
    same_advantages(recorded.batch, name, options, theirs)


def test_leave_one_out_advantages_of_recorded_rollouts(recorded):
    theirs = trl_rollouts(RLOO, recorded.totals, 4)["advantages"].tolist()
    same_advantages(recorded.batch, "rloo", {}, theirs)


def same_advantages(batch, name, options, theirs):
    """Each sampled token has TRL's advantage of its completion, and no other token has one."""
    for row, sampled, value in zip(
        estimate(name, batch, **options).advantages, batch.sampled, theirs, strict=True
    ):
        assert row[sampled] == pytest.approx(np.full(sampled.sum(), value), abs=1e-6)
        assert not row[~sampled].any()


@pytest.mark.parametrize("scale", PAIRS)
def test_group_advantages(scale):
    name, options = PAIRS[scale]
    theirs = trl_rollouts(GRPO, REWARDS, 4, scale_rewards=scale)["advantages"].tolist()
    assert advantages(name, REWARDS, 4, **options) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("scale", PAIRS)
def test_a_reward_that_is_missing_is_left_out_of_the_group(scale):
    name, options = PAIRS[scale]
    rewards = [1, float("nan"), 0, 0.5, 1, 1, 0.2, 0]
    theirs = trl_rollouts(GRPO, rewards, 4, scale_rewards=scale)["advantages"].tolist()
    assert advantages(name, rewards, 4, **options) == pytest.approx(theirs, abs=1e-6)


def test_leave_one_out_advantages():
    theirs = trl_rollouts(RLOO, REWARDS, 4)["advantages"].tolist()
    assert advantages("rloo", REWARDS, 4) == pytest.approx(theirs, abs=1e-6)


def rows(seed=0, batch=3, time=6):
    """Random padded tensors; the mask has a hole, as tool output makes."""
    rng = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(batch, time, generator=rng, dtype=torch.float64)

    mask = torch.ones(batch, time, dtype=torch.int64)
    mask[0, 4:] = 0
    mask[1, 2:4] = 0
    logprobs, old = normal(0.4) - 1, normal(0.4) - 1
    return logprobs.requires_grad_(), old, normal(1.0), mask


def flat(logprobs, old, per_token, mask, weights=None):
    sequence = torch.arange(len(mask))[:, None].expand(mask.shape)
    return Tokens(
        logprobs.flatten(), old.flatten(), per_token.flatten(), mask.flatten().bool(),
        sequence.flatten(), None if weights is None else weights.flatten(),
    )  # fmt: skip


def trl_loss(logprobs, old, per_token, mask, extra=None, **settings):
    made = trainer(**settings)
    entropies = torch.zeros_like(old)
    made._get_per_token_logps_and_entropies.return_value = (logprobs, entropies, None)
    made.args.use_bias_correction_kl = False
    inputs = {
        "prompt_ids": torch.ones(len(mask), 1), "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.ones_like(mask), "completion_mask": torch.ones_like(mask),
        "tool_mask": mask, "advantages": per_token, "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(), **(extra or {}),
    }  # fmt: skip
    return GRPO._compute_loss(made, None, inputs)


def same(ours, theirs, logprobs):
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    a, b = (torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-6)


REDUCTIONS = {
    "grpo": Reduction("sequence-mean"),
    "bnpo": Reduction("token-mean"),
    "dapo": Reduction("token-mean"),
    "dr_grpo": Reduction("constant", 16),
    "luspo": Reduction("sequence-sum"),
}


@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("loss_type", REDUCTIONS)
def test_clipped_loss_with_advantages_per_token(loss_type, delta):
    given = rows()
    theirs = trl_loss(*given, loss_type=loss_type, delta=delta)
    ours = ppo_clip(flat(*given), low=0.2, high=0.28, dual=delta, reduction=REDUCTIONS[loss_type])
    same(ours.value, theirs, given[0])


@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("loss_type", REDUCTIONS)
def test_clipped_loss_of_recorded_rollouts(recorded, loss_type, delta):
    theirs = trl_loss(*recorded.rows, loss_type=loss_type, delta=delta)
    reduction = REDUCTIONS[loss_type]
    ours = ppo_clip(flat(*recorded.rows), low=0.2, high=0.28, dual=delta, reduction=reduction)
    same(ours.value, theirs, recorded.rows[0])


def test_sequence_ratio_of_recorded_rollouts(recorded):
    logprobs, old, _, mask = recorded.rows
    per_sequence = torch.tensor(recorded.totals, dtype=torch.float64)[:, None]
    given = (logprobs, old, per_sequence.expand(mask.shape), mask)
    settings = {"importance_sampling_level": "sequence", "epsilon_high": 0.2}
    theirs = trl_loss(logprobs, old, per_sequence[:, 0], mask, loss_type="grpo", **settings)
    same(gspo(flat(*given), low=0.2, high=0.2).value, theirs, logprobs)


def test_kl_in_the_loss_of_recorded_rollouts(recorded):
    logprobs, old, per_token, mask = recorded.rows
    theirs = trl_loss(logprobs, old, per_token, mask, {"ref_per_token_logps": old}, beta=0.04)
    ours = ppo_clip(flat(logprobs, old, per_token, mask), high=0.28).value
    chosen = mask.bool()
    same(ours + 0.04 * kl(logprobs[chosen], old[chosen], "k3").mean(), theirs, logprobs)


def test_sequence_ratio_with_one_advantage_per_sequence():
    logprobs, old, _, mask = rows(1)
    per_sequence = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)[:, None].expand(mask.shape)
    given = (logprobs, old, per_sequence, mask)
    settings = {"importance_sampling_level": "sequence", "epsilon_high": 0.2}
    theirs = trl_loss(logprobs, old, per_sequence[:, 0], mask, loss_type="grpo", **settings)
    same(gspo(flat(*given), low=0.2, high=0.2).value, theirs, logprobs)


def test_weighted_loss():
    logprobs, old, per_token, mask = rows(2)
    weights = torch.rand(mask.shape, dtype=torch.float64)
    theirs = trl_loss(
        logprobs, old, per_token, mask, {"importance_sampling_ratio": weights},
        use_vllm=True, vllm_importance_sampling_correction=True,
    )  # fmt: skip
    ours = ppo_clip(flat(logprobs, old, per_token, mask, weights), high=0.28)
    same(ours.value, theirs, logprobs)


def test_kl_in_the_loss():
    logprobs, old, per_token, mask = rows(3)
    anchor = torch.full_like(old, -1.2)
    theirs = trl_loss(logprobs, old, per_token, mask, {"ref_per_token_logps": anchor}, beta=0.04)
    ours = ppo_clip(flat(logprobs, old, per_token, mask), high=0.28).value
    chosen = mask.bool()
    same(ours + 0.04 * kl(logprobs[chosen], anchor[chosen], "k3").mean(), theirs, logprobs)


MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.mark.parametrize(("low", "high"), [(None, 1.2), (0.8, 1.2), (0.8, None)])
@pytest.mark.parametrize("mode", MODES)
def test_importance_ratio_masks(mode, low, high):
    rng = np.random.default_rng(4)
    sampling = [list(-1 + 0.3 * rng.standard_normal(n)) for n in (5, 3, 4)]
    sampling[1][1] = None  # the engine could not score it
    ratios_agree(torch.full((3, 5), -1.0, dtype=torch.float64), sampling, mode, low, high)


@pytest.mark.parametrize("mode", MODES)
def test_importance_ratios_of_recorded_rollouts(recorded, mode):
    moved, old, _, mask = recorded.rows
    sampling = [row[own.bool()].tolist() for row, own in zip(old, mask, strict=True)]
    trained = torch.zeros(len(sampling), max(map(len, sampling)), dtype=torch.float64)
    for i, row in enumerate(sampling):
        trained[i, : len(row)] = moved.detach()[i][mask[i].bool()]
    ratios_agree(trained, sampling, mode, 0.8, 1.2)


def ratios_agree(old, sampling, mode, low, high):
    """The trainer's log-probabilities, padded, against the engine's; TRL's ratios and ours."""
    (count, longest), lengths = old.shape, [len(row) for row in sampling]
    theirs = trl_rollouts(
        GRPO, [1.0] + [0.0] * (count - 1), count, lengths, sampling, old, use_vllm=True,
        vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low, vllm_importance_sampling_clip_max=high,
    )["importance_sampling_ratio"].expand(count, longest)  # fmt: skip
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    behaviour = torch.zeros_like(old)
    for i, row in enumerate(sampling):
        behaviour[i, : len(row)] = torch.tensor([float("nan") if x is None else x for x in row])
    level, how = mode.split("_")
    sequence = torch.arange(count)[:, None].expand(count, longest).flatten()
    ours = importance_weights(
        old.flatten(), behaviour.flatten(), mask.flatten(), sequence,
        level=level, mode=how, low=low, high=high,
    )  # fmt: skip
    assert torch.allclose(ours.view(count, longest)[mask], theirs[mask], atol=1e-6)


def test_entropy():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    ours, theirs = entropy_from_logits(logits), trl_utils.entropy_from_logits(logits)
    assert torch.allclose(ours, theirs, atol=1e-6)
    a, b = (torch.autograd.grad(x.sum(), logits)[0] for x in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-6)
