"""Adapters merged into their base: the same model as peft's own, made once, in one plain folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from agent.policies import catalog
from agent.policies.merge import merge_adapter, merged_folder, merged_model
from kg.errors import UsageError

TOKENS_B_T = torch.tensor([[1, 5, 9, 30, 2, 7]])
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    folder = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder


def _adapter(base: Path, out: Path, *, seed: int = 1, targets: list[str] = PROJECTIONS) -> Path:
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(str(out))
    return out


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS_B_T).logits


def test_the_merged_model_is_pefts_own(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untouched = _logits(plain)
    expected = _logits(PeftModel.from_pretrained(plain, str(adapter)))
    merged = _logits(merged_model(base, adapter))
    assert torch.allclose(merged, expected, atol=1e-5, rtol=0)
    assert (expected - untouched).abs().max() > 1e-2  # the adapter does something


def test_the_merged_folder_is_plain_bf16_with_the_tokenizer(base: Path, tmp_path: Path) -> None:
    adapter, out = _adapter(base, tmp_path / "adapter"), tmp_path / "out"
    out.mkdir()
    merge_adapter(base, adapter, out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    gap = (_logits(model).float() - _logits(merged_model(base, adapter))).abs().max()
    assert gap < 0.05
    assert AutoTokenizer.from_pretrained(out)("w3")["input_ids"] == [3]


def test_it_is_made_once_and_again_only_for_a_new_adapter(base: Path, tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", list[str]()
    adapter = _adapter(base, tmp_path / "adapter")
    first = merged_folder("default", base, adapter, cache, said.append)
    assert merged_folder("default", base, adapter, cache, said.append) == first
    assert len(said) == 1
    _adapter(base, adapter, seed=2)
    second = merged_folder("default", base, adapter, cache, said.append)
    assert second != first
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [second.name]


def test_default_is_the_base_with_the_shipped_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    monkeypatch.setattr(catalog, "ADAPTER", adapter)
    monkeypatch.setattr(catalog, "_resolve_catalog", lambda spec, cache, progress: base)
    folder = catalog.resolve("default", tmp_path / "cache")
    assert folder.name.startswith("default-")
    row = catalog.list_models(tmp_path / "cache")[0]
    assert (row.name, row.cached, row.path) == ("default", True, folder)
    assert catalog.weights_version(folder) != catalog.weights_version(base)


def test_a_local_adapter_folder_is_a_policy_name(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    folder = catalog.resolve(str(adapter), tmp_path / "cache")
    assert torch.allclose(
        _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)),
        _logits(merged_model(base, adapter)),
        atol=0.05,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft warns of it too when it is made
def test_an_adapter_on_tied_embeddings_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter", targets=["q_proj", "lm_head"])
    with pytest.raises(UsageError, match="changes lm_head"):
        merged_model(base, adapter)


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    other = tmp_path / "other"
    config = LlamaConfig.from_pretrained(base, hidden_size=64, num_hidden_layers=2)
    LlamaForCausalLM(config).save_pretrained(other)
    with pytest.raises(UsageError, match="does not fit the model"):
        merged_model(other, adapter)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(("trained_on", "merged_into"), [(2, 3), (3, 2)])
def test_an_adapter_for_another_number_of_layers_is_refused(
    trained_on: int, merged_into: int, base: Path, tmp_path: Path
) -> None:
    folders = {}
    for layers in (trained_on, merged_into):
        folders[layers] = tmp_path / f"layers{layers}"
        config = LlamaConfig.from_pretrained(base, num_hidden_layers=layers)
        LlamaForCausalLM(config).save_pretrained(folders[layers])
    adapter = _adapter(folders[trained_on], tmp_path / "adapter")
    with pytest.raises(UsageError, match="tensors without a partner"):
        merged_model(folders[merged_into], adapter)


def test_an_incomplete_adapter_says_what_is_missing(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors"):
        merged_folder("default", base, adapter, tmp_path / "cache", print)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UsageError, match="names no base model"):
        catalog.resolve(str(adapter), tmp_path / "cache")
