"""Cold start under real DeepSpeed on a small random model: losses, packing, resumption, export."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn
from kg.errors import UsageError
from rl.attention import row_lengths
from rl.engine import TargetLogprobs, load_trainable
from rl.packing import Row, pack
from rl.recipe import Lora, Optimizer, SftRecipe
from rl.sft import train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, base_model):
    """A two-layer Llama with the default policy's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
    return folder


def demonstrations(count=24):
    """Episodes of one turn whose reply repeats part of the prompt."""
    rng = np.random.default_rng(0)
    for number in range(count):
        prompt = rng.integers(10, 200, 20)
        ids = np.concatenate([prompt, prompt[:6]]).astype(np.int32)
        action = Action(ActionKind.ANSWER, text="x")
        turn = Turn((Span(0, 20),), Span(20, 26), Span(26, 26), "x", action)
        yield Trajectory(
            Task(f"t{number}", "q"), "expert@1", 0, Sampling(), Status.ANSWERED,
            StopReason.ANSWER, (turn,), ids, np.full(26, np.nan, dtype=np.float32),
        )  # fmt: skip


def recipe(**changes):
    values = {
        "base": "tiny", "optimizer": Optimizer(lr=5e-3), "pack_tokens": 64, "batch_tokens": 128,
        "epochs": 4, "holdout": 0.1, "dtype": "float32", "lora": None, "save_every": 2,
    }  # fmt: skip
    return SftRecipe(**{**values, **changes})


def losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {m["step"]: m["loss"] for m in map(json.loads, lines)}


def test_packed_rows_have_the_logprobs_they_have_alone(tiny):
    model = load_trainable(tiny, None, torch.float32)
    plain = type(model.model).from_pretrained(tiny, dtype=torch.float32)
    rng = np.random.default_rng(1)
    made = []
    for size in (9, 17, 5):
        target = np.zeros(size, dtype=bool)
        target[size // 2 :] = True
        made.append(Row(rng.integers(0, 49152, size), target))
    [packed] = pack(made, 100)
    targets = torch.from_numpy(np.flatnonzero(packed.target))
    with row_lengths(packed.lengths), torch.no_grad():
        found = model(torch.from_numpy(packed.ids), torch.from_numpy(packed.positions), targets)
        chunked = TargetLogprobs(model.model, chunk=2)(
            torch.from_numpy(packed.ids), torch.from_numpy(packed.positions), targets
        )
    expected = []
    for row in made:
        with torch.no_grad():
            logits = plain(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
        expected += [float(logits[i - 1, row.ids[i]]) for i in np.flatnonzero(row.target)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(chunked, expected, atol=1e-5)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_training_lowers_the_loss_alike_under_every_zero_stage(tiny, tmp_path, zero):
    report = train(recipe(zero=zero), tiny, demonstrations(), tmp_path)
    found = losses(tmp_path)
    assert report.finished
    assert found[report.steps] < found[1] - 1
    assert found[1] == pytest.approx(10.8, abs=0.2)  # log of the vocabulary: nothing known yet


def test_lora_trains_the_adapter_alone_and_peft_loads_it(tiny, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report = train(recipe(lora=Lora(rank=4, alpha=8)), tiny, demonstrations(), tmp_path)
    assert report.out.name == "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny)
    before = base(torch.tensor([[5, 6, 7]])).logits
    merged = PeftModel.from_pretrained(base, report.out).merge_and_unload()
    assert not torch.allclose(before, merged(torch.tensor([[5, 6, 7]])).logits)
    assert losses(tmp_path)[report.steps] < losses(tmp_path)[1]


def test_a_run_of_another_recipe_is_not_overwritten(tiny, tmp_path):
    train(recipe(epochs=1), tiny, demonstrations(), tmp_path)
    with pytest.raises(UsageError, match="another recipe"):
        train(recipe(epochs=2), tiny, demonstrations(), tmp_path)


def test_no_demonstration_is_a_usage_error(tiny, tmp_path):
    with pytest.raises(UsageError, match="no demonstration"):
        train(recipe(), tiny, [], tmp_path)


SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from test_sft import demonstrations, recipe
from rl.sft import train
def progress(report):
    print("step", report.step, flush=True)
    time.sleep({pause})
train(recipe(), Path({tiny!r}), demonstrations(), Path({run!r}), progress)
"""


def start(tiny, run, pause):
    here = Path(__file__)
    code = SCRIPT.format(
        tests=str(here.parent), root=str(here.parents[2]), tiny=str(tiny), run=str(run), pause=pause
    )
    launcher = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    env = {key: value for key, value in os.environ.items() if key not in launcher}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_losses(tiny, tmp_path, number):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(tiny, whole, 0)
    assert process.communicate(timeout=120)[0].count("step")
    process = start(tiny, cut, 0.2)
    for line in process.stdout:
        if line.split()[:2] == ["step", "5"]:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    assert len(losses(cut)) < len(losses(whole))
    assert process.wait() == (0 if number == signal.SIGINT else -signal.SIGKILL)
    start(tiny, cut, 0).communicate(timeout=120)
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1  # it went on, and did not begin again
    expected, found = losses(whole), losses(cut)
    assert found.keys() == expected.keys()
    assert all(found[step] == pytest.approx(expected[step], abs=1e-5) for step in expected)
