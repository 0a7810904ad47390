"""An adapter on an adapter as one adapter: the same policy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from agent.policies.merge import merged_model
from agent.policies.stacking import stack
from kg.errors import UsageError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(
    base: Path,
    folder: Path,
    rank: int,
    alpha: int,
    targets: list[str],
    dtype: torch.dtype,
    **more: Any,
) -> Path:
    """A LoRA on a model folder whose matrices are all random."""
    torch.manual_seed(rank)
    plain: Any = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", **more
    )
    model: Any = get_peft_model(plain, config)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(tensor, std=0.2)
            tensor.data = tensor.data.to(dtype)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [6, 4])
def test_two_adapters_as_one_are_the_same_policy(base, tmp_path, dtype, alpha):
    """Of other ranks, scales and matrices."""
    first = adapter(base, tmp_path / "first", 4, 8, ["q_proj", "down_proj"], dtype)
    below = merged_model(base, first)
    below.save_pretrained(tmp_path / "below")
    second = adapter(tmp_path / "below", tmp_path / "second", 3, alpha, ["q_proj", "v_proj"], dtype)
    out = tmp_path / "out"
    out.mkdir()
    stack(first, second, out)
    expected = merged_model(tmp_path / "below", second).state_dict()
    found = merged_model(base, out).state_dict()
    moved = 0
    for name, tensor in below.state_dict().items():
        assert torch.allclose(found[name], expected[name], atol=1e-5), name
        moved += not torch.equal(expected[name], tensor)
    assert moved == 4
    told = json.loads((out / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (7, 14)
    assert told["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    kept = dtype if alpha == 6 else torch.float32  # a scale of 4/3 does not fit into bf16
    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {kept}


@pytest.mark.parametrize(
    "more",
    [
        {"use_rslora": True},
        {"bias": "all"},
        {"use_dora": True},
        {"layers_to_transform": [0]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    ],
)
def test_what_is_no_plain_lora_is_refused(base, tmp_path, more):
    plain = adapter(base, tmp_path / "plain", 4, 8, ["q_proj"], torch.float32)
    odd = adapter(base, tmp_path / "odd", 4, 8, ["q_proj"], torch.float32, **more)
    for first, second in ((plain, odd), (odd, plain)):
        with pytest.raises(UsageError, match=next(iter(more))):
            stack(first, second, tmp_path)
