"""The vLLM policy with the real engine, against the embedded policy on the same weights."""

import asyncio
import math
import sys

import numpy as np
import pytest
from transformers import AutoConfig

from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.transformers import TransformersPolicy
from agent.policies.vllm import VllmPolicy
from kg.cores import CORES
from kg.errors import MissingExtraError, PolicyUnavailableError, UsageError

pytest.importorskip("vllm", reason="vLLM is not installed")

QUESTIONS = ["What is the capital of France?", "Name three colours.", "Who wrote Hamlet?"]


@pytest.fixture(scope="module")
def policy(base_model):
    import llvmlite.binding  # noqa: F401  as a search before the engine's start has it

    made = VllmPolicy(base_model, dtype="float32", max_model_len=1024, max_num_seqs=16, cache_gib=1)
    yield made
    asyncio.run(made.aclose())


def request(policy, question, stop=(), **sampling):
    messages = ({"role": "user", "content": question},)
    ids = tuple(policy.template.opening(messages))
    return Request(messages, ids, Sampling(**{"max_tokens": 24, **sampling}), stop)


def test_the_cache_on_a_cpu_is_no_larger_than_what_can_be_in_it(base_model, monkeypatch):
    """Of 4 GiB most would be cleared for nothing at each start of a small model."""
    from agent.policies import vllm_engine
    from agent.policies.vllm_engine import EngineOptions

    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(vllm_engine, "_spare_gib", lambda: 4.0)

    def gib(**options):
        made = vllm_engine._arguments(base_model, EngineOptions(**options))
        return made["kv_cache_memory_bytes"] / 2**30

    config = AutoConfig.from_pretrained(base_model)
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert gib(max_num_seqs=2, max_model_len=1024) == pytest.approx(17 * 128 * token / 2**30)
    assert gib(max_num_seqs=1, max_model_len=1000) == pytest.approx(9 * 128 * token / 2**30)
    assert gib(max_num_seqs=64) == 4.0
    assert gib(max_num_seqs=2, max_model_len=1024, cache_gib=3.0) == 3.0
    assert vllm_engine._most_gib(object(), {}) == math.inf  # a model without attention


async def test_one_sequence_of_an_odd_length_is_enough_to_start(base_model, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    made = VllmPolicy(base_model, dtype="float32", max_model_len=200, max_num_seqs=1)
    [done] = await made.generate([request(made, QUESTIONS[0], max_tokens=4)])
    await made.aclose()
    assert len(done.token_ids) == 4


async def test_greedy_tokens_and_logprobs_equal_those_of_transformers(policy, base_model):
    embedded = TransformersPolicy(base_model, dtype="float32")
    for question in QUESTIONS:
        asked = request(policy, question)
        [ours], [theirs] = await policy.generate([asked]), await embedded.generate([asked])
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)
        assert ours.text == theirs.text
    assert (policy.version, policy.engine) == (embedded.version, "vllm float32")
    assert embedded.engine == "transformers float32"
    await embedded.aclose()


async def test_sampled_logprobs_are_those_of_the_untruncated_model(policy, base_model):
    """Whatever temperature draws, the log-probability is the model's own.

    trl#6789, vllm#42259: engines renormalise over what top-p leaves.
    """
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


async def test_an_engine_of_this_process_steps_in_its_turn(policy):
    with CORES.turn():
        task = asyncio.create_task(policy.generate([request(policy, QUESTIONS[0], max_tokens=2)]))
        await asyncio.wait([task], timeout=0.5)
        assert not task.done()
    [done] = await asyncio.wait_for(task, 60)
    assert len(done.token_ids) == 2


async def test_each_request_stops_at_its_own_string_and_streams_its_text(policy):
    """agent-lightning#326: while streaming, other ids came back than were sampled."""
    pieces = []
    one = request(policy, QUESTIONS[0], stop=("France",))
    two = request(policy, QUESTIONS[0], stop=("Paris",))
    two = Request(two.messages, two.token_ids, two.sampling, two.stop, on_text=pieces.append)
    first, second = await policy.generate([one, two])
    assert first.text.endswith("France")
    assert second.text.endswith("Paris")
    assert "".join(pieces) == second.text
    for done in (first, second):  # the token that completed the stop string is there
        assert policy.template.decode(done.token_ids).startswith(done.text)
        assert not policy.template.decode(done.token_ids[:-1]).endswith(done.text)
        assert len(done.logprobs) == len(done.token_ids)


async def test_a_shared_prefix_is_read_once(policy):
    messages = ({"role": "user", "content": "one two three " * 40},)
    ids = tuple(policy.template.opening(messages))
    asked = Request(messages, ids, Sampling(max_tokens=1))
    await policy.generate([asked])
    [again] = await policy.generate([asked])
    assert len(ids) - 128 <= again.cached_tokens < len(ids) == again.prompt_tokens


async def test_sixty_four_callers_at_once_each_get_their_own(policy):
    texts = [f"Count from {i} upwards." for i in range(64)]
    asked = [
        request(policy, text, max_tokens=6, temperature=1.0, seed=i) for i, text in enumerate(texts)
    ]
    together = await asyncio.gather(*(policy.generate([r]) for r in asked))
    for i in (0, 31, 63):
        [alone] = await policy.generate([asked[i]])
        assert together[i][0].token_ids == alone.token_ids
    assert len({done[0].token_ids for done in together}) > 32


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
    with pytest.raises(PolicyUnavailableError, match="5000 tokens; the policy reads 1024"):
        await policy.generate([Request((), tuple([5] * 5000))])
    with pytest.raises(PolicyUnavailableError, match="vLLM refuses"):
        await policy.generate([Request((), (10**6,))])
    [done] = await policy.generate([request(policy, QUESTIONS[0], max_tokens=2)])
    assert len(done.token_ids) == 2


NAME = "model.layers.0.mlp.down_proj.weight"


def changed_model(base_model, folder, change):
    """A copy of the model whose tensors went through `change`."""
    from safetensors.torch import load_file, save_file

    for file in base_model.iterdir():
        if file.suffix != ".safetensors" and file.name != "turnwise.json":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base_model / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


async def test_weights_are_replaced_and_put_back(policy, base_model, tmp_path):
    other = changed_model(base_model, tmp_path, lambda t: t.update({NAME: t[NAME] * -3}))
    asked, version = request(policy, QUESTIONS[0]), policy.version
    [before] = await policy.generate([asked])
    await policy.load(other)
    [changed] = await policy.generate([asked])
    assert policy.version != version
    embedded = TransformersPolicy(other, dtype="float32")
    [theirs] = await embedded.generate([asked])
    await embedded.aclose()
    np.testing.assert_allclose(changed.logprobs, theirs.logprobs, atol=1e-3)
    await policy.load(base_model)
    [after] = await policy.generate([asked])
    assert before.token_ids == after.token_ids != changed.token_ids
    np.testing.assert_allclose(before.logprobs, after.logprobs, atol=1e-5)
    assert policy.version == version


async def test_what_runs_ends_under_the_weights_it_began_with(policy, base_model, tmp_path):
    other = changed_model(base_model, tmp_path, lambda t: t.update({NAME: t[NAME] * -3}))
    asked = request(policy, "one two three " * 60 + QUESTIONS[1], max_tokens=40)
    [before] = await policy.generate([asked])
    [again] = await policy.generate([asked])
    assert again.cached_tokens > 0
    running = asyncio.create_task(policy.generate([asked]))
    await asyncio.sleep(0.2)
    await policy.load(other)
    [during], [after] = await running, (await policy.generate([asked]))
    await policy.load(base_model)
    assert during.token_ids == before.token_ids != after.token_ids
    assert after.cached_tokens == 0  # no prefix of the old weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), "absent"),
        (lambda t: t.update(extra=t[NAME].clone()), "the model's absent"),
        (lambda t: t.update({NAME: t[NAME][:1].clone()}), "is 1x1536, the model's 576x1536"),
    ],
)
async def test_weights_that_do_not_fit_leave_the_old_ones(
    policy, base_model, tmp_path, change, message
):
    other, version = changed_model(base_model, tmp_path, change), policy.version
    asked = request(policy, QUESTIONS[0])
    [before] = await policy.generate([asked])
    with pytest.raises(PolicyUnavailableError, match=message):
        await policy.load(other)
    [after] = await policy.generate([asked])
    assert (after.token_ids, policy.version) == (before.token_ids, version)


async def test_a_folder_without_weights_is_not_taken_for_new_ones(policy, tmp_path):
    with pytest.raises(PolicyUnavailableError, match="no model weights"):
        await policy.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(PolicyUnavailableError, match="cannot be read"):
        await policy.load(tmp_path)


async def test_one_failure_aborts_the_other_requests_of_the_call(policy):
    long = request(policy, QUESTIONS[1], max_tokens=900)
    with pytest.raises(UsageError):
        await policy.generate([long, Request((), ())])
    await asyncio.wait_for(policy.generate([request(policy, QUESTIONS[0], max_tokens=1)]), 5)
    assert not policy._running


async def test_a_failed_step_fails_its_callers_and_not_the_engine(policy, monkeypatch):
    def broken():
        monkeypatch.undo()
        raise RuntimeError("boom")

    asked = request(policy, QUESTIONS[0], max_tokens=4)
    monkeypatch.setattr(policy._engine, "step", broken)
    with pytest.raises(PolicyUnavailableError, match="boom"):
        await asyncio.wait_for(policy.generate([asked]), 30)
    [done] = await asyncio.wait_for(policy.generate([asked]), 30)
    assert len(done.token_ids) == 4


def test_without_vllm_the_extra_is_named(base_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match="'vllm'") as caught:
        VllmPolicy(base_model)
    assert "turnwise[vllm" in caught.value.hint


async def test_a_second_engine_in_the_process_starts_and_closes_cleanly(base_model):
    second = VllmPolicy(base_model, max_model_len=256, max_num_seqs=2, cache_gib=0.25)
    running = asyncio.create_task(second.generate([request(second, QUESTIONS[1], max_tokens=200)]))
    await asyncio.sleep(0.3)
    await second.aclose()
    await second.aclose()
    with pytest.raises(PolicyUnavailableError, match="was closed"):
        await running
    with pytest.raises(PolicyUnavailableError, match="is closed"):
        await asyncio.wait_for(second.generate([request(second, QUESTIONS[0])]), 5)
    with pytest.raises(PolicyUnavailableError, match="is closed"):
        await asyncio.wait_for(second.load(base_model), 5)


async def test_a_folder_without_a_model_is_a_clear_error(base_model, tmp_path):
    for file in base_model.iterdir():
        if file.suffix != ".safetensors" and file.name != "turnwise.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(PolicyUnavailableError, match="does not start"):
        VllmPolicy(tmp_path, max_model_len=256)
