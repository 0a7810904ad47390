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
