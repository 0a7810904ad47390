"""A real vLLM server that samples: the same numbers as in this process, and weights that are proven."""

import asyncio
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from agent.policies.base import FinishReason, Request, Sampling
from agent.policies.transformers import TransformersPolicy
from agent.policies.vllm_server import VllmServerPolicy
from agent.policies.vllm_worker import told_by
from kg.errors import PolicyUnavailableError, UsageError
from tests.conftest import ROOT

EXTENSION = "agent.policies.vllm_worker.WorkerExtension"
TEXT = ("Who founded the town?", "Where is the river?", "What is it made of?")


@pytest.fixture(scope="module")
def penalised(micro, tmp_path_factory):
    """The micro policy as a model ships whose makers want no repetitions in chats."""
    folder = tmp_path_factory.mktemp("penalised") / "micro"
    shutil.copytree(micro, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"repetition_penalty": 3.0, "min_p": 0.9}))
    return folder


@pytest.fixture(scope="module")
def url(penalised, tmp_path_factory):
    """A server of the micro policy, started as the documentation says, but for `--generation-config`:
    what a request says must be enough."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keep = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"}
    env = {
        **keep,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(penalised),
        "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048",
        "--logprobs-mode", "raw_logprobs", "--worker-extension-cls", EXTENSION,
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    with subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=ROOT) as process:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
        try:
            while not _healthy(address):
                assert process.poll() is None, Path(log.name).read_text()[-3000:]
                assert time.monotonic() < end, Path(log.name).read_text()[-3000:]
                time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _healthy(address):
    try:
        return httpx.get(f"{address}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def requests(policy, **sampling):
    asked = [({"role": "user", "content": text},) for text in TEXT]
    how = Sampling(**{"max_tokens": 12, **sampling})
    return [Request((), tuple(policy.template.opening(m)), how, stop=("</search>",)) for m in asked]


def changed(micro, folder, factor=1.01):
    """The micro policy with other weights."""
    shutil.copytree(micro, folder)
    (folder / "turnwise.json").unlink(missing_ok=True)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: (tensor * factor).contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


async def test_it_samples_what_the_model_samples_in_this_process(url, micro):
    server, here = VllmServerPolicy(url, micro), TransformersPolicy(micro, dtype="float32")
    assert server.context_length == 2048
    asked = [requests(p, temperature=0.0, max_tokens=24) for p in (server, here)]
    theirs, ours = [await p.generate(r) for p, r in zip((server, here), asked, strict=True)]
    for one, other in zip(theirs, ours, strict=True):
        assert (one.token_ids, one.text, one.finish) == (other.token_ids, other.text, other.finish)
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-3)
    drawn = await server.generate(requests(server, temperature=1.0, seed=5))
    again = await server.generate(requests(server, temperature=1.0, seed=5))
    assert [d.token_ids for d in drawn] == [d.token_ids for d in again]
    assert {d.finish for d in drawn} <= {FinishReason.STOP, FinishReason.LENGTH}
    assert drawn[0].text.endswith("</search>") or len(drawn[0].token_ids) == 12
    told = requests(server)[0]
    [scored] = await server.generate([Request((), told.token_ids, prompt_logprobs=True)])
    assert math.isnan(scored.prompt_logprobs[0])
    assert len(scored.prompt_logprobs) == len(told.token_ids)
    await server.aclose()
    await here.aclose()


async def test_weights_are_replaced_and_proven(url, micro, tmp_path):
    import torch

    from rl.engine import load_trainable
    from rl.sync import Canary, SyncError, deliver, learner_logprobs, weights_of

    other = changed(micro, tmp_path / "other")
    policy = VllmServerPolicy(url, micro)
    model, canary = load_trainable(other, None, torch.float32), Canary.of(policy.template)
    proof = learner_logprobs(model, canary)
    before = await policy.generate(requests(policy))
    done = await deliver(policy, other, weights_of(model), canary, proof)
    assert done.tensors > 10
    assert done.by_canary == ()
    assert done.gap < 1e-3
    assert policy.version == done.version != VllmServerPolicy(url, micro).version
    after = await policy.generate(requests(policy))
    assert any(a.logprobs != b.logprobs for a, b in zip(after, before, strict=True))
    another = load_trainable(changed(micro, tmp_path / "another", 1.02), None, torch.float32)
    with pytest.raises(SyncError, match="does not hold the learner's weights"):
        await deliver(policy, other, weights_of(another), canary, proof)
    await policy.load(micro)
    back = await policy.generate(requests(policy))
    assert [b.token_ids for b in back] == [b.token_ids for b in before]
    assert np.allclose(back[0].logprobs, before[0].logprobs, atol=1e-6)
    await policy.aclose()


async def test_what_does_not_fit_is_refused_and_the_server_goes_on(url, micro, tmp_path):
    policy = VllmServerPolicy(url, micro)
    odd = changed(micro, tmp_path / "odd")
    weights = load_file(odd / "model.safetensors")
    weights.pop(sorted(weights)[3])
    save_file(weights, odd / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyUnavailableError, match="do not fit"):
        await policy.load(odd)
    [long] = [Request((), tuple([5] * 3000), Sampling(max_tokens=4))]
    with pytest.raises(PolicyUnavailableError, match="refused: status 400"):
        await policy.generate([long])
    assert len(await policy.generate(requests(policy))) == 3
    await policy.aclose()


async def test_a_call_that_is_cancelled_leaves_the_server_to_others(url, micro):
    policy = VllmServerPolicy(url, micro, concurrency=2)
    long = asyncio.create_task(policy.generate(requests(policy, max_tokens=1500, temperature=1.0)))
    await asyncio.sleep(0.03)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert len(await policy.generate(requests(policy))) == 3
    await policy.aclose()


class Plain(BaseHTTPRequestHandler):
    """A server that is no vLLM in development mode."""

    def do_GET(self):
        found = self.path == "/v1/models"
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(json.dumps({"data": [{"id": "m", "max_model_len": 64}]}).encode())

    def log_message(self, *_): ...


def test_parts_of_several_workers_are_told_by_what_was_overwritten(micro):
    """A name that no worker knows stands for all that they hold."""
    names = sorted(load_file(micro / "model.safetensors"))
    known, fused = names[1:], names[0]
    part = ("bfloat16", [4], "", True)
    ones, others = dict.fromkeys(known, part), dict.fromkeys(known, part)
    assert all(told.overwritten for told in told_by([ones, others], micro).values())
    others[known[2]] = ("bfloat16", [4], "", False)
    told = told_by([ones, others], micro)
    assert {name for name in names if not told[name].overwritten} == {fused, known[2]}
    alike = dict.fromkeys(names, ("bfloat16", [4], "ab", False))
    assert told_by([alike, alike], micro) == told_by([alike], micro)


def test_a_server_that_was_started_otherwise_is_told_how(micro):
    with pytest.raises(PolicyUnavailableError, match="no vLLM server") as error:
        VllmServerPolicy("http://127.0.0.1:9", micro)
    assert "VLLM_SERVER_DEV_MODE=1" in error.value.hint
    server = HTTPServer(("127.0.0.1", 0), Plain)
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(PolicyUnavailableError, match="does not let its weights") as error:
        VllmServerPolicy(f"http://127.0.0.1:{server.server_port}", micro, transfer="nccl")
    assert "weight-transfer-config" in error.value.hint
    server.shutdown()


def test_a_whole_run_samples_from_it(url, tmp_path):
    from tests.rl.training_run import run

    rollouts = {"engine": "server", "server": {"url": url}, "tasks": 2, "size": 2, "concurrency": 4}
    assert run(tmp_path / "run", tmp_path / "home", steps=2, rollouts=rollouts).finished
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 2
    assert all(row["sync_gap"] < 1e-3 and row["gap_mean"] < 1e-3 for row in rows)


class Telling(Plain):
    """Lets itself be asked, and repeats the key in what it refuses."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "m", "max_model_len": 64}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.end_headers()
        self.wfile.write(f"not with {self.headers['Authorization']}".encode())


async def test_a_key_that_the_server_echoes_is_not_shown(micro):
    server = HTTPServer(("127.0.0.1", 0), Telling)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        policy = VllmServerPolicy(
            f"http://127.0.0.1:{server.server_port}", micro, api_key=SecretStr("sk-secret")
        )
        with pytest.raises(PolicyUnavailableError, match=r"not with Bearer \*\*\*"):
            await policy.forget_prefixes()
        await policy.aclose()
    finally:
        server.shutdown()
        server.server_close()


def test_a_recipe_names_a_server_where_it_uses_one():
    from tests.rl.training_run import recipe

    for rollouts in ({"engine": "server"}, {"server": {"url": "http://127.0.0.1:1"}}):
        with pytest.raises(UsageError, match="go together"):
            recipe(rollouts=rollouts)
    with pytest.raises(UsageError, match="url"):
        recipe(rollouts={"engine": "server", "server": {"url": "http://me:secret@host"}})
