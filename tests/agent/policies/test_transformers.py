"""The embedded policy against transformers' own generation, on the real default model."""

import asyncio
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.chat import ChatTemplate
from agent.policies.transformers import TransformersPolicy
from kg.cores import CORES
from kg.errors import PolicyUnavailableError, UsageError

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "Who wrote Hamlet?",
]


@pytest.fixture(scope="module")
def policy(base_model):
    made = TransformersPolicy(base_model, dtype="float32")
    yield made
    made._worker.shutdown()


def request(policy, question, stop=(), **sampling):
    messages = ({"role": "user", "content": question},)
    ids = tuple(policy.template.opening(messages))
    return Request(messages, ids, Sampling(**{"max_tokens": 24, **sampling}), stop)


def reference(policy, ids, count):
    """Greedy ids and log-probabilities by full forward passes, no cache."""
    ids, chosen, values = list(ids), [], []
    for _ in range(count):
        with torch.inference_mode():
            logits = policy.model(torch.tensor([ids])).logits[0, -1].float()
        token = int(logits.argmax())
        values.append(float(logits.log_softmax(-1)[token]))
        chosen.append(token)
        ids.append(token)
        if token in policy._stop_ids:
            break
    return chosen, values


async def test_greedy_tokens_and_logprobs_equal_full_forward_passes(policy):
    asked = request(policy, QUESTIONS[0])
    [done] = await policy.generate([asked])
    ids, values = reference(policy, asked.token_ids, 24)
    assert list(done.token_ids) == ids
    np.testing.assert_allclose(done.logprobs, values, atol=1e-4)
    assert "Paris" in done.text


async def test_a_batch_gives_what_each_request_gives_alone(policy):
    alone = [(await policy.generate([request(policy, q)]))[0] for q in QUESTIONS]
    together = await asyncio.gather(*(policy.generate([request(policy, q)]) for q in QUESTIONS))
    for one, [other] in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)


async def test_the_cache_of_the_last_turn_is_reused_without_changing_the_result(policy):
    first = request(policy, QUESTIONS[0])
    [done] = await policy.generate([first])
    longer = (*first.token_ids, *done.token_ids, *policy.template.between("user", "Sure?"))
    again = Request((), longer, Sampling(max_tokens=8))
    [reused] = await policy.generate([again])
    assert reused.cached_tokens >= len(first.token_ids)
    ids, values = reference(policy, longer, 8)
    assert list(reused.token_ids) == ids
    np.testing.assert_allclose(reused.logprobs, values, atol=1e-3)


async def test_each_sequence_stops_at_its_own_string(policy):
    first, second = await policy.generate(
        [
            request(policy, QUESTIONS[0], stop=("France",)),
            request(policy, QUESTIONS[0], stop=("Paris",)),
        ]
    )
    assert first.text.rstrip().endswith("France")
    assert "Paris" in second.text
    assert first.finish is second.finish is FinishReason.STOP


@pytest.mark.parametrize("options", [{}, {"prompt_logprobs": True}])
async def test_it_computes_in_its_turn(policy, options):
    asked = replace(request(policy, QUESTIONS[0], max_tokens=2), **options)
    with CORES.turn():
        task = asyncio.create_task(policy.generate([asked]))
        await asyncio.wait([task], timeout=0.5)
        assert not task.done()
    [done] = await asyncio.wait_for(task, 60)
    assert len(done.token_ids) == 2


async def test_length_is_told(policy):
    [done] = await policy.generate([request(policy, QUESTIONS[2], max_tokens=3)])
    assert (len(done.token_ids), done.finish) == (3, FinishReason.LENGTH)


async def test_a_seed_reproduces_whatever_else_is_in_the_batch(policy):
    asked = request(policy, QUESTIONS[2], temperature=1.0, seed=11)
    other = request(policy, QUESTIONS[1], temperature=1.0, seed=12)
    [alone] = await policy.generate([asked])
    together, _ = await policy.generate([asked, other])
    [different] = await policy.generate([request(policy, QUESTIONS[2], temperature=1.0, seed=13)])
    assert alone.token_ids == together.token_ids
    assert alone.token_ids != different.token_ids


async def test_top_k_one_is_greedy(policy):
    [greedy] = await policy.generate([request(policy, QUESTIONS[0])])
    [cut] = await policy.generate([request(policy, QUESTIONS[0], temperature=1.0, top_k=1)])
    [nucleus] = await policy.generate([request(policy, QUESTIONS[0], temperature=1.0, top_p=1e-6)])
    assert greedy.token_ids == cut.token_ids == nucleus.token_ids


async def test_text_is_streamed_whole(policy):
    pieces = []
    asked = request(policy, QUESTIONS[0])
    asked = Request(asked.messages, asked.token_ids, asked.sampling, on_text=pieces.append)
    [done] = await policy.generate([asked])
    await asyncio.sleep(0)
    assert "".join(pieces) == done.text
    assert len(pieces) > 2


async def test_cancelling_frees_the_policy(policy):
    task = asyncio.create_task(policy.generate([request(policy, QUESTIONS[2], max_tokens=5000)]))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [done] = await asyncio.wait_for(policy.generate([request(policy, QUESTIONS[0])]), 30)
    assert "Paris" in done.text


async def test_an_empty_prompt_is_refused_and_the_next_call_works(policy):
    with pytest.raises(UsageError, match="empty prompt"):
        await policy.generate([Request((), ())])
    [done] = await policy.generate([request(policy, QUESTIONS[0], max_tokens=2)])
    assert len(done.token_ids) == 2


async def test_weights_are_replaced_and_put_back(policy, base_model, tmp_path):
    asked = request(policy, QUESTIONS[0], max_tokens=6)
    [before] = await policy.generate([asked])
    version = policy.version
    changed = tmp_path / "changed"
    policy.model.save_pretrained(changed)
    from safetensors.torch import load_file, save_file

    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 0
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    await policy.load(changed)
    [broken] = await policy.generate([asked])
    assert policy.version != version
    await policy.load(base_model)
    [after] = await policy.generate([asked])
    assert before.token_ids == after.token_ids != broken.token_ids
    assert policy.version == version


def test_a_broken_model_folder_is_a_clear_error(base_model, tmp_path):
    for file in base_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(PolicyUnavailableError, match="does not load"):
        TransformersPolicy(tmp_path)


async def test_weights_that_lack_a_tensor_are_refused_and_the_old_ones_stay(base_model, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in base_model.iterdir():
        if file.suffix != ".safetensors" and file.name != "turnwise.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base_model / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    policy = TransformersPolicy(base_model, dtype="float32")
    version = policy.version
    with pytest.raises(PolicyUnavailableError, match="down_proj"):
        await policy.load(tmp_path)
    assert policy.version == version
    await policy.aclose()
    with pytest.raises(PolicyUnavailableError, match="down_proj"):
        TransformersPolicy(tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("ids", "tokens", "message"),
    [((1,) * 9000, 8, "9000 tokens; the policy reads"), ((10**6,), 8, "outside 0"),
     ((-1,), 8, "outside 0"), ((5, 6), 0, "max_tokens is 0")],
)  # fmt: skip
async def test_a_bad_request_is_refused_alone(policy, ids, tokens, message):
    bad = Request((), ids, Sampling(max_tokens=tokens))
    good, refused = await asyncio.gather(
        policy.generate([request(policy, QUESTIONS[0])]),
        policy.generate([bad]),
        return_exceptions=True,
    )
    assert "Paris" in good[0].text
    assert isinstance(refused, UsageError)
    assert message in refused.message


def test_a_broken_tokenizer_is_a_clear_error(base_model, tmp_path):
    folder = shutil.copytree(base_model, tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(PolicyUnavailableError, match="does not load"):
        ChatTemplate.load(folder)
