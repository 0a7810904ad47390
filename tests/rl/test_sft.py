"""Cold start under real DeepSpeed on a small random model: losses, packing, resumption, export."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn
from kg.errors import UsageError
from rl.attention import require_plain, row_lengths
from rl.checkpoint import Checkpoint
from rl.engine import TargetLogprobs, load_trainable, start_engine
from rl.model_files import copy_tokenizer
from rl.packing import Row, pack
from rl.recipe import Lora, Optimizer, SftRecipe
from rl.sft import train
from tests import forked


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


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["model", "adapter"])
def test_weights_are_written_in_the_type_that_is_asked_for(tiny, tmp_path, lora):
    found = {}
    for saved in (None, "bfloat16"):
        run = tmp_path / str(saved)
        report = train(recipe(epochs=1, lora=lora, save_dtype=saved), tiny, demonstrations(), run)
        [file] = report.out.glob("*.safetensors")
        found[saved] = load_file(file)
        if lora is None:
            config = json.loads((report.out / "config.json").read_text())
            assert config["dtype"] == (saved or "float32")
        assert not list(report.out.glob("*.part"))
    assert found[None].keys() == found["bfloat16"].keys()
    for name, tensor in found[None].items():
        assert tensor.dtype == torch.float32
        assert torch.equal(found["bfloat16"][name], tensor.to(torch.bfloat16))


def test_a_run_goes_on_in_the_type_it_was_begun_in(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rl.precision.native", lambda: "bfloat16")
    made = recipe(dtype="native", max_seconds=1e-9)
    assert not train(made, tiny, demonstrations(), tmp_path / "run").finished
    monkeypatch.setattr("rl.precision.native", lambda: "float32")
    for saved in (None, "float32"):  # what is written may change while it goes on
        one = made.model_copy(update={"save_dtype": saved})
        report = train(one, tiny, demonstrations(), tmp_path / "run")
        [file] = report.out.glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {
            torch.float32 if saved else torch.bfloat16
        }
    assert report.steps == 3
    with pytest.raises(UsageError, match=r"a run of another recipe: dtype, seed differ"):
        train(recipe(max_seconds=1e-9, seed=1), tiny, demonstrations(), tmp_path / "run")


def test_a_window_narrower_than_a_row_is_refused_though_a_pack_fits(tiny, tmp_path):
    """A row longer than a pack has a pass of its own, in which a bare window would be passed over."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = json.loads((tiny / "config.json").read_text())
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    made = MistralConfig(
        **{name: sizes[name] for name in same}, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, sliding_window=80,
    )  # fmt: skip
    MistralForCausalLM(made).save_pretrained(tmp_path / "windowed")
    copy_tokenizer(tiny, tmp_path / "windowed")
    short = list(demonstrations())
    end, unknown = Span(100, 100), np.full(100, np.nan, dtype=np.float32)
    turn = replace(
        short[0].turns[0], context=(Span(0, 90),), reply=Span(90, 100), observation_span=end
    )
    ids = np.resize(short[0].token_ids, 100)
    long = replace(short[0], turns=(turn,), token_ids=ids, logprobs=unknown)
    for name, found in (("held", {"holdout": 0.45}), ("trained", {"holdout": 0.0})):
        with pytest.raises(UsageError, match="sliding_window is 80"):
            train(recipe(**found), tmp_path / "windowed", [long, *short[1:]], tmp_path / name)
    assert train(recipe(epochs=1), tmp_path / "windowed", short, tmp_path / "short").finished


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_training_lowers_the_loss_alike_under_every_zero_stage(tiny, tmp_path, zero):
    report = train(recipe(zero=zero), tiny, demonstrations(), tmp_path / "a")
    found = losses(tmp_path / "a")
    assert report.finished
    assert found[report.steps] < found[1] - 1
    assert found[1] == pytest.approx(10.8, abs=0.2)  # log of the vocabulary: nothing known yet
    if zero:
        train(recipe(), tiny, demonstrations(), tmp_path / "plain")
        expected = losses(tmp_path / "plain")
        assert found == pytest.approx(expected, abs=2e-3)
        ours, theirs = (weights(tmp_path / name / "model") for name in ("a", "plain"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=2e-2) for name in ours)


def test_training_begins_anew_after_another_engine_has_ended_its_groups(tiny, tmp_path):
    """vLLM ends every process group of its process when it closes."""
    for number in range(2):
        assert train(recipe(zero=2), tiny, demonstrations(), tmp_path / str(number)).finished
        torch.distributed.destroy_process_group()
    assert losses(tmp_path / "0") == pytest.approx(losses(tmp_path / "1"), abs=1e-6)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_size_of_a_pack_does_not_change_the_loss(tiny, tmp_path):
    found = []
    for size in (64, 512):  # the whole set is one step
        changes = {"pack_tokens": size, "batch_tokens": 1024, "epochs": 6}
        train(recipe(**changes), tiny, demonstrations(), tmp_path / str(size))
        found.append(losses(tmp_path / str(size)))
    assert len(found[0]) == 6
    assert found[0] == pytest.approx(found[1], abs=1e-3)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_zero_3_exports_whole_tensors(tiny, tmp_path, lora):
    report = train(recipe(zero=3, lora=lora, epochs=1), tiny, demonstrations(), tmp_path)
    [file] = report.out.glob("*.safetensors")

    tensors = load_file(file)
    assert tensors
    assert all(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("zero", [0, 2])
def test_a_gradient_that_is_no_number_changes_nothing(tiny, zero):
    """The loss itself is a number."""
    from rl.fit import TrainingError, _step, _steps
    from rl.packing import rows

    torch.manual_seed(0)
    made = load_trainable(tiny, None, torch.float32)
    engine = start_engine(made, Optimizer(lr=5e-3), 10, torch.float32, zero)
    (_, broken), *_ = engine.module.named_parameters()
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    packs = next(_steps(recipe(), [row for one in demonstrations() for row in rows(one)]))
    hook = broken.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"norm (nan|inf|-1).* at step 1; it changed nothing"):
        _step(engine, packs, 1, 10, 0.0, 0)
    assert all(torch.equal(p, before[name]) for name, p in engine.module.named_parameters())
    hook.remove()


def test_a_save_that_is_older_than_our_own_pointer_is_found(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "latest").write_text("step40")
    assert Checkpoint(tmp_path, 1).step == 40
    (folder / "latest").write_text("")  # a kill while DeepSpeed wrote it
    assert Checkpoint(tmp_path, 1).step is None


def test_the_rate_that_is_logged_is_the_one_that_was_used(tiny, tmp_path):
    peak = Optimizer(lr=5e-3, warmup=0.5, final=0.0)
    report = train(recipe(optimizer=peak), tiny, demonstrations(), tmp_path)
    rates = [json.loads(x)["lr"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warm = round(0.5 * report.steps)
    assert rates[:warm] == pytest.approx([5e-3 * (n + 1) / warm for n in range(warm)])
    assert rates[warm] == pytest.approx(5e-3)
    assert rates[-1] > 0


def test_a_run_does_not_go_on_with_other_data(tiny, tmp_path):
    train(recipe(epochs=1), tiny, demonstrations(), tmp_path)
    with pytest.raises(UsageError, match="begun on other data"):
        train(recipe(epochs=1), tiny, demonstrations(20), tmp_path)


def test_a_report_without_held_out_rows_is_strict_json(tiny, tmp_path):
    train(recipe(epochs=1, holdout=0.0), tiny, demonstrations(), tmp_path)

    def refuse(name):
        raise AssertionError(name)

    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert report["holdout_after"] is None


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
from dataclasses import replace
from pathlib import Path
from test_sft import demonstrations, recipe
from rl.sft import train
def progress(report):
    print("step", report.step, flush=True)
    time.sleep({pause})
train(recipe(), Path({tiny!r}), demonstrations(), Path({run!r}), progress)
"""


def start(tiny, run, pause, anew=False, **launcher):
    here = Path(__file__)
    code = SCRIPT.format(
        tests=str(here.parent), root=str(here.parents[2]), tiny=str(tiny), run=str(run), pause=pause
    )
    keys = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    env = {key: value for key, value in os.environ.items() if key not in keys} | launcher
    if anew or launcher:
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    return forked.Forked(["-c", code], stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_losses(tiny, tmp_path, number):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(tiny, whole, 0, anew=True)
    assert process.communicate(timeout=120)[0].count("step")
    process = start(tiny, cut, 0.2)
    for line in process.stdout:
        if line.split()[:2] == ["step", "5"]:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    assert len(losses(cut)) < len(losses(whole))
    pointer = json.loads((cut / "checkpoint" / "current.json").read_text())
    assert (pointer["recipe"], pointer["step"]) == (recipe().digest, int(pointer["tag"][-5:]))
    assert not (cut / "checkpoint" / "latest").exists()
    assert process.wait() == (0 if number == signal.SIGINT else -signal.SIGKILL)
    start(tiny, cut, 0).communicate(timeout=120)
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))  # it went on; a lost step is told once
    expected, found = losses(whole), losses(cut)
    assert found.keys() == expected.keys()
    assert all(found[step] == pytest.approx(expected[step], abs=1e-5) for step in expected)


def test_two_processes_train_as_one_does(tiny, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = [
        start(
            tiny, tmp_path / "two", 0, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1",
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=180)[0] for process in together]
    finally:
        for process in together:
            process.kill()
    assert [process.returncode for process in together] == [0, 0]
    train(recipe(), tiny, demonstrations(), tmp_path / "one")
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert found == pytest.approx(expected, abs=1e-3)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(expected)  # one process writes
    assert [text.count("step") for text in printed] == [len(expected), 0]
    ours, theirs = (weights(tmp_path / name / "model") for name in ("one", "two"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-2) for name in ours)


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("Gemma2Config", {}, "softcapping"),
        ("MistralConfig", {"sliding_window": 64}, "sliding_window"),
        ("GraniteConfig", {"logits_scaling": 8.0}, "logits_scaling"),
        ("CohereConfig", {"logit_scale": 0.06}, "logit_scale"),
        ("Qwen3NextConfig", {}, "layer_types"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(kind, changes, field):
    import transformers

    with pytest.raises(UsageError, match=field):
        require_plain(getattr(transformers, kind)(**changes), longest=128)


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen3Config", "Qwen2Config", "Olmo2Config"])
def test_a_plain_model_is_not_refused(kind):
    import transformers

    require_plain(getattr(transformers, kind)(), longest=1024)
    require_plain(transformers.MistralConfig(sliding_window=4096), longest=1024)
