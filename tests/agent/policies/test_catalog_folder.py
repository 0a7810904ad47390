"""Model folders: whole or not at all, and known by their weights."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import agent
from agent.policies.bundled import BUNDLED
from agent.policies.model_folder import (
    CorruptModelError,
    Manifest,
    build,
    config_version,
    locked,
    verify,
    weights_version,
)
from agent.policies.weight_file import save_tensors
from kg.errors import UsageError

# Builds a folder with a limit of 64 kB on every file it writes, by safetensors or by plain writes.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from agent.policies.weight_file import save_tensors
from agent.policies.model_folder import Manifest, build
from kg.errors import PolicyUnavailableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
def by_safetensors(out, scratch):
    save_tensors({"w": torch.zeros(100_000)}, out / "model.safetensors")
def by_hand(out, scratch):
    (out / "model.safetensors").write_bytes(bytes(100_000))
fill = {"safetensors": by_safetensors, "hand": by_hand}[sys.argv[2]]
try:
    build(Path(sys.argv[1]), Manifest(), fill)
except PolicyUnavailableError as error:
    print(error.message, error.hint)
"""


def _fill(out: Path, scratch: Path) -> None:
    (scratch / "download").write_bytes(b"x")
    (out / "config.json").write_text("{}")
    save_tensors({"w": torch.arange(8.0)}, out / "model.safetensors")


def test_a_build_is_sealed_with_the_stamps_of_its_files(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", Manifest(name="m", source="test"), _fill)
    manifest = verify(folder, "mend", deep=True)
    assert sorted(manifest.files) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert oct((folder / "model.safetensors").stat().st_mode) == oct(
        (folder / "config.json").stat().st_mode
    )


def test_a_build_that_fails_keeps_the_old_folder_and_leaves_nothing(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", Manifest(), _fill)
    version = weights_version(folder)

    def broken(out: Path, scratch: Path) -> None:
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(folder, Manifest(), broken)
    assert weights_version(folder) == version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("writer", ["safetensors", "hand"])
def test_a_disk_that_takes_no_more_is_a_clear_error(writer: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "m"), writer],
        env=os.environ | {"PYTHONPATH": str(Path(agent.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write the model m" in done.stdout
    assert "free disk space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_a_missing_file_and_a_missing_manifest(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", Manifest(), _fill)
    (folder / "config.json").unlink()
    with pytest.raises(CorruptModelError, match=r"config\.json is missing"):
        verify(folder, "mend")
    (folder / "turnwise.json").write_text("not json")
    with pytest.raises(CorruptModelError, match=r"no readable turnwise\.json") as caught:
        verify(folder, "mend")
    assert caught.value.hint == "mend"


def test_the_version_is_the_weights_and_nothing_else(tmp_path: Path) -> None:
    one = build(tmp_path / "one", Manifest(name="one"), _fill)
    version = weights_version(one)
    assert len(version) == 12
    two = tmp_path / "two"
    two.mkdir()
    shutil.copyfile(one / "model.safetensors", two / "model.safetensors")
    assert weights_version(two) == version
    save_tensors({"w": torch.arange(8.0) + 1}, two / "model.safetensors")
    assert weights_version(two) != version


def test_the_version_is_not_hashed_again_until_the_weights_change(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", Manifest(), _fill)
    manifest = json.loads((folder / "turnwise.json").read_text())
    manifest["files"]["model.safetensors"]["sha256"] = "kept"
    (folder / "turnwise.json").write_text(json.dumps(manifest))
    from_kept = weights_version(folder)
    os.utime(folder / "model.safetensors")
    fresh = weights_version(folder)
    assert fresh != from_kept
    assert weights_version(folder) == fresh
    kept = json.loads((folder / "turnwise.json").read_text())["files"]["model.safetensors"]
    assert kept["sha256"] != "kept"


def test_a_sealed_folder_with_other_weights_is_damaged_and_stays_so(tmp_path: Path) -> None:
    folder = build(tmp_path / "m", Manifest(name="m"), _fill)
    version = weights_version(folder)
    os.utime(folder / "model.safetensors")
    assert weights_version(folder) == version
    save_tensors({"w": torch.arange(8.0) + 1}, folder / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CorruptModelError, match="not the file it was made with"):
            weights_version(folder)
        with pytest.raises(CorruptModelError, match="has another SHA-256"):
            verify(folder, "mend", deep=True)


def test_a_folder_without_weights_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model weights"):
        weights_version(tmp_path)


def test_the_lock_makes_the_second_wait_and_say_so(tmp_path: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "m", said.append):
            order.append("second")

    with locked(tmp_path / "m", said.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert said == ["waiting for another process that is making m"]


def test_the_files_beside_the_weights_have_a_version_without_the_words_about_them(tmp_path):
    shutil.copytree(BUNDLED["micro"], tmp_path / "a")
    before = config_version(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("Other words.")
    (tmp_path / "a" / "LICENSE").write_text("Some terms.")
    assert weights_version(tmp_path / "a")  # it writes its hashes there
    assert config_version(tmp_path / "a") == before
    for name in (
        *("chat_template.jinja", "generation_config.json", "tokenizer.json", "config.json"),
        *("tokenizer_config.json", "special_tokens_map.json"),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        with (tmp_path / name / name).open("a") as file:
            file.write("\n")
        assert config_version(tmp_path / name) != before
