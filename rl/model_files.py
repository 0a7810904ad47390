"""A learner's weights as a plain model folder, which every engine and transformers load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.policies.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from agent.policies.model_folder import weights_version
from agent.policies.weight_file import save_tensors
from kg.errors import UsageError
from rl import run_folder

if TYPE_CHECKING:
    import torch

    from rl.engine import Adapter

_WEIGHTS = "model.safetensors"
BASE = "base.json"
#: Folder of the adapter within that of the policy that it is merged into.
ADAPTER = "adapter"


def write_model(
    weights: Mapping[str, torch.Tensor],
    like: Path,
    folder: Path,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
) -> Path:
    """Write a model folder whole: a kill leaves the old one, the new one, or neither under its name.

    Args:
        weights: tensors by name, as `rl.learner.Learner.weights` gives them.
        like: a model folder of the same architecture; its configuration and tokenizer are copied.
        folder: where; replaced when it is there.
        dtype: that the weights are converted to.
        adapter: that is in the weights, if one was trained; goes into a folder within.

    Raises:
        UsageError: it cannot be written.
    """
    from safetensors import SafetensorError

    partial = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
        save_tensors(made, partial / _WEIGHTS)
        _write_config(like / "config.json", partial / "config.json", dtype)
        if (like / "generation_config.json").is_file():
            shutil.copyfile(like / "generation_config.json", partial / "generation_config.json")
        copy_tokenizer(like, partial)
        if adapter is not None:
            _write_adapter(adapter, partial / ADAPTER, like)
        run_folder.put(partial, folder)
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other
        shutil.rmtree(partial, ignore_errors=True)
        told = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {folder}: {told}", "free some space") from error
    return folder


def convert(folder: Path, dtype: torch.dtype) -> None:
    """Turn the weights that lie in a folder, of a model or an adapter, into another type.

    Raises:
        OSError, safetensors.SafetensorError: they cannot be read or written.
    """
    from safetensors.torch import load_file

    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        found = load_file(file).items()
        made = {name: one.to(dtype) if one.is_floating_point() else one for name, one in found}
        size += sum(one.nbytes for one in made.values())
        partial = file.with_suffix(".part")
        save_tensors(made, partial)
        partial.replace(file)
    for path in folder.glob("*.safetensors.index.json"):
        index = json.loads(path.read_text("utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    config = folder / "config.json"
    if config.is_file():
        _write_config(config, config, dtype)


def _write_config(source: Path, out: Path, dtype: torch.dtype) -> None:
    """A model's configuration, with its weights in this type."""
    config = json.loads(source.read_text("utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    out.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _write_adapter(adapter: Adapter, folder: Path, like: Path) -> None:
    folder.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter.tensors.items()}
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)
    text = json.dumps(adapter.fields, indent=2)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", "utf-8")
    note_base(folder, like)


def note_base(adapter: Path, base: Path) -> None:
    """Write beside an adapter which weights it was trained on, whatever their name comes to mean."""
    (adapter / BASE).write_text(json.dumps({"weights": weights_version(base)}) + "\n", "utf-8")


def require_base(adapter: Path, base: Path) -> None:
    """Refuse to put an adapter on other weights than it was trained on, where it tells.

    Raises:
        UsageError: they are others.
    """
    path = adapter / BASE
    if not path.is_file():
        return
    trained, found = json.loads(path.read_text("utf-8"))["weights"], weights_version(base)
    if trained != found:
        raise UsageError(
            f"the adapter was trained on the weights {trained}; the base is {found} now",
            "export with the version of turnwise that trained it, or give its base as a folder",
        )


def copy_tokenizer(source: Path, out: Path) -> None:
    """Put a model folder's tokenizer and chat template beside new weights."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
