"""The same parts on a GPU; skipped where there is none."""

import json

import numpy as np
import pytest

from agent.policies.base import Request, Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn

pytestmark = pytest.mark.gpu


def asked(policy):
    messages = ({"role": "user", "content": "What is the capital of France?"},)
    ids = tuple(policy.template.opening(messages))
    return Request(messages, ids, Sampling(max_tokens=24))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
async def test_a_policy_answers(base_model, engine):
    if engine == "vllm":
        from agent.policies.vllm import VllmPolicy as Engine
    else:
        from agent.policies.transformers import TransformersPolicy as Engine
    policy = Engine(base_model, dtype="bfloat16")
    [done] = await policy.generate([asked(policy)])
    await policy.aclose()
    assert "Paris" in done.text
    assert len(done.logprobs) == len(done.token_ids)
    assert all(np.isfinite(done.logprobs))


def test_large_trees_are_attended_in_blocks():
    """Compiled FlexAttention equals attention by runs, gradient included, in less than the memory of
    one head's scores."""
    import torch

    from rl.tree import build_tree
    from rl.tree_attention import on_tree, tree_attention

    rng, gpu = np.random.default_rng(0), torch.device("cuda")
    for size in (6000, 7001):  # a second length, which must not be computed uncompiled
        trunk = rng.integers(0, 9000, size)
        tree = build_tree([np.concatenate([trunk, rng.integers(0, 9000, 900)]) for _ in range(3)])
        parts = [torch.randn(1, 2, len(tree), 64, device=gpu, requires_grad=True) for _ in "qkv"]
        found = {}
        for way in ("runs", "auto"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with on_tree(tree, gpu, way):
                out = tree_attention(torch.nn.Identity(), *parts, None)[0]
            grads = torch.autograd.grad(out.square().sum(), parts)
            found[way] = [out.detach(), *grads], torch.cuda.max_memory_allocated() - before
        for one, other in zip(found["auto"][0], found["runs"][0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
        assert found["auto"][1] < 4 * len(tree) ** 2


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_an_adapter_is_trained_in_bfloat16(base_model, tmp_path, zero):
    from safetensors.torch import load_file

    from rl.recipe import Lora, Optimizer, SftRecipe
    from rl.sft import train

    rng = np.random.default_rng(0)
    demonstrations = []
    for number in range(12):
        ids = rng.integers(10, 4000, 40).astype(np.int32)
        turn = Turn(
            (Span(0, 30),), Span(30, 40), Span(40, 40), "x", Action(ActionKind.ANSWER, text="x")
        )
        demonstrations.append(
            Trajectory(
                Task(f"t{number}", "q"), "expert@1", 0, Sampling(), Status.ANSWERED,
                StopReason.ANSWER, (turn,), ids, np.full(40, np.nan, dtype=np.float32),
            )
        )  # fmt: skip
    recipe = SftRecipe(
        base="base", lora=Lora(rank=4, alpha=8), optimizer=Optimizer(lr=1e-3), pack_tokens=256,
        batch_tokens=256, holdout=0.1, dtype="bfloat16", zero=zero,
    )  # fmt: skip
    report = train(recipe, base_model, demonstrations, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert report.steps == len(lines) >= 2
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    tensors = load_file(report.out / "adapter_model.safetensors")
    assert tensors
    assert all(tensor.numel() for tensor in tensors.values())
