"""The vLLM policy with the real engine, against the embedded policy on the same weights."""

import asyncio

import numpy as np
import pytest

from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.transformers import TransformersPolicy
from agent.policies.vllm import VllmPolicy
from kg.errors import PolicyUnavailableError, UsageError

pytest.importorskip("vllm", reason="vLLM is not installed")

QUESTIONS = ["What is the capital of France?", "Name three colours.", "Who wrote Hamlet?"]


@pytest.fixture(scope="module")
def policy(base_model):
    import llvmlite.binding  # noqa: F401  as a search before the engine's start has it

    made = VllmPolicy(base_model, dtype="float32", max_model_len=1024, max_num_seqs=16)
    yield made
    asyncio.run(made.aclose())


def request(policy, question, stop=(), **sampling):
    messages = ({"role": "user", "content": question},)
    ids = tuple(policy.template.opening(messages))
    return Request(messages, ids, Sampling(**{"max_tokens": 24, **sampling}), stop)


async def test_greedy_tokens_and_logprobs_equal_those_of_transformers(policy, base_model):
    embedded = TransformersPolicy(base_model, dtype="float32")
    for question in QUESTIONS:
        asked = request(policy, question)
        [ours], [theirs] = await policy.generate([asked]), await embedded.generate([asked])
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)
        assert ours.text == theirs.text
    await embedded.aclose()


async def test_sampled_logprobs_are_those_of_the_untruncated_model(policy, base_model):
    """Whatever temperature draws, the log-probability is the model's own."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    asked = request(policy, QUESTIONS[1], temperature=1.5, seed=3)
    [done] = await policy.generate([asked])
    ids = torch.tensor([[*asked.token_ids, *done.token_ids]])
    with torch.inference_mode():
        logprobs = model(ids).logits[0].float().log_softmax(-1)
    start = len(asked.token_ids) - 1
    expected = [float(logprobs[start + i, token]) for i, token in enumerate(done.token_ids)]
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-3)


async def test_each_request_stops_at_its_own_string_and_streams_its_text(policy):
    pieces = []
    one = request(policy, QUESTIONS[0], stop=("France",))
    two = request(policy, QUESTIONS[0], stop=("Paris",))
    two = Request(two.messages, two.token_ids, two.sampling, two.stop, on_text=pieces.append)
    first, second = await policy.generate([one, two])
    assert first.text.endswith("France")
    assert second.text.endswith("Paris")
    assert "".join(pieces) == second.text
    assert policy.template.decode(first.token_ids).startswith(first.text.rstrip())


async def test_length_is_told(policy):
    [done] = await policy.generate([request(policy, QUESTIONS[1], max_tokens=3)])
    assert (len(done.token_ids), done.finish) == (3, FinishReason.LENGTH)


async def test_a_seed_reproduces_in_any_company(policy):
    asked = request(policy, QUESTIONS[1], temperature=1.0, seed=7)
    [alone] = await policy.generate([asked])
    others = [request(policy, q, temperature=1.0, seed=i) for i, q in enumerate(QUESTIONS * 3)]
    together = await asyncio.gather(*(policy.generate([r]) for r in [asked, *others]))
    assert together[0][0].token_ids == alone.token_ids


async def test_cancelling_aborts_in_the_engine(policy):
    task = asyncio.create_task(policy.generate([request(policy, QUESTIONS[1], max_tokens=900)]))
    await asyncio.sleep(0.5)
    assert policy._running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [done] = await asyncio.wait_for(policy.generate([request(policy, QUESTIONS[0])]), 60)
    assert "Paris" in done.text
    assert not policy._running


async def test_a_bad_request_does_not_stop_the_engine(policy):
    with pytest.raises(UsageError, match="empty prompt"):
        await policy.generate([Request((), ())])
    with pytest.raises(UsageError, match="maximum context length"):
        await policy.generate([Request((), tuple([5] * 5000))])
    [done] = await policy.generate([request(policy, QUESTIONS[0], max_tokens=2)])
    assert len(done.token_ids) == 2


async def test_weights_are_replaced_and_put_back(policy, base_model, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in base_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base_model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name] * -3
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    asked, version = request(policy, QUESTIONS[0]), policy.version
    [before] = await policy.generate([asked])
    await policy.load(tmp_path)
    [changed] = await policy.generate([asked])
    assert policy.version != version
    await policy.load(base_model)
    [after] = await policy.generate([asked])
    assert before.token_ids == after.token_ids != changed.token_ids
    np.testing.assert_allclose(before.logprobs, after.logprobs, atol=1e-5)


async def test_a_folder_without_a_model_is_a_clear_error(base_model, tmp_path):
    for file in base_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(PolicyUnavailableError, match="does not start"):
        VllmPolicy(tmp_path, max_model_len=256)
