"""The catalog's names, and the real default base model in the user's model cache."""

import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent.policies import catalog
from agent.policies.model_folder import CorruptModelError, sha256_of
from kg.errors import PolicyUnavailableError, UsageError

BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def cache() -> Path:
    """The cache that `agent` itself uses, so that the model is fetched once per machine."""
    home = os.environ.get("AGENT_HOME", Path.home() / ".cache" / "turnwise")
    return Path(home) / "models"


@pytest.fixture(scope="module")
def base(cache: Path) -> Path:
    return catalog.pull(BASE, cache)


def test_the_default_base_has_the_recorded_bytes(base: Path) -> None:
    assert sha256_of(base / "model.safetensors") == catalog.CATALOG[BASE].weights_sha256
    assert catalog.weights_version(base) == "77a6de8316a5"


def test_its_tokenizer_speaks_chatml(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (2, 2, 49152)
    assert tokenizer("<|im_start|>user\n")["input_ids"] == [1, 4093, 198]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    unguided = tokenizer.apply_chat_template(turns[1:], tokenize=False)
    assert unguided.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_its_tokenizer_splits_digits_before_blanks(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize("\n\n10") == ["ĊĊ", "1", "0"]
    text = "In 1869,  3 + 4\n\n1. é 中文 🙂 <search>Mendeleev</search>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_answers_and_ties_its_embeddings(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(tokens[prompt["input_ids"].shape[1] :])
    assert tokens[-1] == tokenizer.eos_token_id


def test_resolve_finds_it_without_fetching(base: Path, cache: Path) -> None:
    said: list[str] = []
    assert catalog.resolve(BASE, cache, said.append) == base
    assert said == []


def test_default_without_an_adapter_is_the_base_and_says_so(
    base: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(catalog, "ADAPTER", tmp_path / "absent")
    with caplog.at_level(logging.WARNING):
        assert catalog.resolve("default", cache) == base
    assert "no adapter" in caplog.text


def test_the_list_tells_what_is_cached(base: Path, cache: Path, tmp_path: Path) -> None:
    rows = {row.name: row for row in catalog.list_models(cache)}
    assert list(rows) == ["default", BASE, "micro", "micro-careless"]
    row = rows[BASE]
    assert (row.cached, row.path, row.licence) == (True, base, "Apache-2.0")
    on_disk = sum(path.stat().st_size for path in base.iterdir())
    assert row.size_bytes == pytest.approx(on_disk, rel=0.01)
    empty = catalog.list_models(tmp_path / "empty")
    assert [row.name for row in empty if row.cached] == ["micro", "micro-careless"]


def test_a_local_folder_wins(base: Path, tmp_path: Path) -> None:
    assert catalog.resolve(str(base), tmp_path) == base


def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.resolve("smollm-135m-instruct", tmp_path)
    assert "no model is called 'smollm-135m-instruct'" in caught.value.message
    assert f"did you mean '{BASE}'" in caught.value.hint


@pytest.mark.parametrize("name", ["", "../../etc", "a b", "/no/such/folder"])
def test_a_name_that_names_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        catalog.resolve(name, tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        catalog.resolve(str(tmp_path), tmp_path)


def test_a_hub_name_that_cannot_be_had_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PolicyUnavailableError) as caught:
        catalog.resolve("nobody/smollm2-135m-instruct", tmp_path)
    assert "agent models pull nobody/smollm2-135m-instruct" in caught.value.hint
    assert f"--policy {BASE}" in caught.value.hint


def test_a_truncated_cached_model_names_the_command_that_mends_it(
    base: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / BASE
    damaged.mkdir()
    for path in base.iterdir():
        (damaged / path.name).symlink_to(path)
    (damaged / "tokenizer.json").unlink()
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptModelError, match=r"tokenizer\.json has 2 bytes") as caught:
        catalog.resolve(BASE, tmp_path)
    assert caught.value.hint == f"agent models pull {BASE} --force"
