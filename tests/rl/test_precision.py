"""Which type `native` stands for, on processors and GPUs as PyTorch describes them."""

import json
import platform

import pytest
import torch

from rl.precision import native, settled
from rl.recipe import Optimizer, SftRecipe, load_sft
from rl.train_recipe import load_train

NAMES = {
    "x86_64": {"amx_bf16", "avx512_bf16", "avx10_2"},
    "aarch64": {"bf16"},
}


@pytest.mark.parametrize(
    ("found", "stands_for"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_f": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx10_2": True}, "bfloat16"),
        ({"neon": True, "bf16": False}, "float32"),
        ({"neon": True, "bf16": True}, "bfloat16"),
    ],
)
def test_native_is_the_type_that_the_processor_computes_in(found, stands_for, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    assert native() == stands_for
    tuned, trained = settled(load_sft("cold_start")), settled(load_train("train_demo"))
    assert {tuned.dtype, trained.update.dtype, trained.rollouts.dtype} == {stands_for}
    assert settled(load_train("grpo")) == load_train("grpo")


@pytest.mark.skipif(platform.machine() not in NAMES, reason="another kind of processor")
def test_pytorch_has_these_names():
    assert NAMES[platform.machine()] <= torch.cpu.get_capabilities().keys()


@pytest.mark.parametrize("computes", [True, False])
def test_a_gpu_counts_before_the_processor(computes, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": not computes})

    def supported(including_emulation=True):
        return computes or including_emulation

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    assert native() == ("bfloat16" if computes else "float32")


def test_a_given_type_stays_and_a_run_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("rl.precision.native", lambda: "float32")
    made = load_train("train_demo", ["update.dtype=bfloat16"])
    assert (settled(made).update.dtype, settled(made).rollouts.dtype) == ("bfloat16", "float32")
    begun = settled(made).model_dump(mode="json")
    (tmp_path / "recipe.json").write_text(json.dumps(begun))
    monkeypatch.setattr("rl.precision.native", lambda: "bfloat16")
    assert settled(made, tmp_path) == settled(made, tmp_path / "new").model_copy(
        update={"rollouts": made.rollouts.model_copy(update={"dtype": "float32"})}
    )
    (tmp_path / "recipe.json").write_text("{")
    assert settled(made, tmp_path).rollouts.dtype == "bfloat16"


def test_runs_from_before_there_was_a_choice_go_on():
    values = {"base": "tiny", "optimizer": Optimizer(lr=1e-3)}
    before, now = SftRecipe(**values), SftRecipe(**values, dtype="native", save_dtype="bfloat16")
    now = now.model_copy(update={"dtype": "bfloat16"})
    assert before.chosen_digest(SftRecipe.free) == now.chosen_digest(SftRecipe.free)
    other = now.model_copy(update={"dtype": "float32"})
    assert before.chosen_digest(SftRecipe.free) != other.chosen_digest(SftRecipe.free)
