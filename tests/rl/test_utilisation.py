"""Tokens and FLOPs of an update, counted on the micro policy's real shapes."""

import json

import pytest
import torch

from rl.engine import load_trainable, start_engine
from rl.recipe import Lora, Optimizer
from rl.step import UpdateStats
from rl.utilisation import flops_per_token, of_memory, of_speed, peak_flops


def body(micro):
    """Weights that every token is multiplied with or scaled by, from the configuration alone."""
    shape = json.loads((micro / "config.json").read_text())
    hidden, size = shape["hidden_size"], shape["head_dim"]
    heads, shared = shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = hidden * size * (2 * heads + 2 * shared)
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden + 2 * size
    return shape["num_hidden_layers"] * layer + hidden


@pytest.mark.parametrize("zero", [0, 3])
def test_six_flops_a_trained_weight_and_four_a_frozen_one(micro, zero):
    def started(lora):
        made = load_trainable(micro, lora, torch.float32)
        return start_engine(made, Optimizer(lr=1e-4), 1, torch.float32, zero).module

    assert flops_per_token(started(None)) == 6 * body(micro)
    lora = started(Lora(rank=4, targets=["q_proj"]))
    added = sum(getattr(p, "ds_numel", p.numel()) for p in lora.parameters() if p.requires_grad)
    assert added > 0
    assert flops_per_token(lora) == 4 * body(micro) + 6 * added


def test_tokens_of_all_updates_of_a_step_count():
    updates = [UpdateStats(0.0, True, {"computed": n}) for n in (300.0, 200.0)]
    found = of_speed(updates, 2.0, 6e6, 1.5e10)
    assert found == {
        "update_tokens": 500.0,
        "update_flops": 3e9,
        "speed/update_tokens": 250.0,
        "speed/update_flops": 1.5e9,
        "speed/utilisation": pytest.approx(0.1),
    }
    assert "speed/utilisation" not in of_speed(updates, 2.0, 6e6, 0.0)
    assert of_speed([], 2.0, 6e6, 0.0)["update_tokens"] == 0


def test_a_peak_is_told_only_where_it_is_known():
    assert peak_flops(312.0, "float32") == 312e12
    if not torch.cuda.is_available():
        assert peak_flops(0.0, "bfloat16") == 0.0
        assert "memory_gib" not in of_memory()


def test_resident_memory_grows_by_what_is_held():
    before = of_memory()["resident_gib"]
    held = torch.ones(2**26)  # written, so that its 256 MiB are resident
    grown = of_memory()["resident_gib"] - before
    assert 0.2 < grown < 0.3
    assert held.sum() > 0
