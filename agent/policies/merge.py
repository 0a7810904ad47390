"""LoRA adapters merged into their base, so that every engine loads one plain model folder.

A merged folder is named after the digest of its base and its adapter: a new adapter makes a new
folder, and the old ones of the same name go. The merge is done in float32 and saved as bf16.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from agent.policies import plain_model
from agent.policies.model_folder import (
    Manifest,
    Progress,
    build,
    locked,
    sha256_of,
    verify,
    weights_version,
    write_failure,
)
from kg.errors import UsageError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: Raised whenever the way of merging changes what comes out, so that old folders are made anew.
_METHOD = "peft-float32-1"


def adapter_digest(adapter: Path) -> str:
    """SHA-256 in hex over an adapter's configuration and weights.

    Raises:
        UsageError: a file is missing.
    """
    files = (adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS)
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"the adapter in {adapter} has no {path.name}",
                "give a folder that peft's save_pretrained wrote",
            )
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def adapter_base(adapter: Path) -> str:
    """The name of the model that an adapter was trained on, as its configuration says.

    Raises:
        UsageError: the configuration is not JSON or names no base.
    """
    name = adapter_fields(adapter).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"{adapter / ADAPTER_CONFIG} names no base model",
            "set base_model_name_or_path in it to a model name or folder",
        )
    return name


def adapter_fields(adapter: Path) -> dict[str, Any]:
    """An adapter's configuration.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        fields = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {adapter / ADAPTER_CONFIG}: {error}") from error
    return fields if isinstance(fields, dict) else {}


def merged_folder(
    name: str,
    base: Path,
    adapter: Path,
    cache: Path,
    progress: Progress,
    *,
    mend: str = "",
    force: bool = False,
) -> Path:
    """The folder of `base` with `adapter` merged in, made in `cache` the first time.

    Args:
        name: what the folder is called before its digest; older folders of this name are removed.
        base: a plain model folder.
        adapter: a peft LoRA folder.
        cache: the folder of models.
        progress: told when the merge begins.
        mend: the command that makes the folder anew, for errors.
        force: make it anew even if it is there.

    Raises:
        UsageError: the adapter is incomplete or cannot be merged.
        CorruptModelError: the folder that is there is damaged and `force` is off.
        PolicyUnavailableError: the disk is full.
    """
    made_from = {"base": weights_version(base), "adapter": adapter_digest(adapter)}
    key = hashlib.sha256(" ".join([_METHOD, *made_from.values()]).encode()).hexdigest()[:12]
    target = cache / f"{name}-{key}"
    if target.exists() and not force:
        verify(target, mend or f"remove the folder {target}, then try again")
        return target
    try:
        with locked(cache / name, progress):
            if target.exists() and not force:
                return target
            progress(f"merging the adapter {adapter.name} into {base.name} (once)")
            manifest = Manifest(name=name, source=f"{base.name} + {adapter}", made_from=made_from)
            build(target, manifest, lambda out, _: merge_adapter(base, adapter, out))
            _remove_older(target, name)
    except OSError as error:
        raise write_failure(target, error) from error
    return target


def _remove_older(target: Path, name: str) -> None:
    """Remove the merges of earlier adapters, and what killed merges of them left."""
    digest = "[0-9a-f]" * 12
    for pattern in (f"{name}-{digest}", f".{name}-{digest}.partial"):
        for folder in target.parent.glob(pattern):
            if folder != target:
                shutil.rmtree(folder, ignore_errors=True)


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` with the LoRA `adapter` merged in to the existing folder `out`.

    The weights are bf16, the tokenizer and chat template the base's.

    Raises:
        UsageError: the adapter does not fit the base, or changes tied embeddings.
        OSError: a folder cannot be read or written.
    """
    from transformers import AutoTokenizer

    with plain_model.quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(str(base))
        plain_model.save(merged_model(base, adapter), tokenizer, out)


def merged_model(base: Path, adapter: Path) -> Any:
    """`base` with `adapter` merged in, as a transformers model in float32 on the CPU.

    Raises:
        UsageError: the adapter does not fit the base, or changes tied embeddings.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    _refuse_tied_targets(model, adapter)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _unfit(base, adapter, reason) from error
    _require_every_tensor(adapted, base, adapter)
    return adapted.merge_and_unload()


def _unfit(base: Path, adapter: Path, reason: str) -> UsageError:
    return UsageError(
        f"the adapter in {adapter} does not fit the model in {base}: {reason}",
        "give the base model that the adapter was trained on",
    )


def _require_every_tensor(adapted: Any, base: Path, adapter: Path) -> None:
    """Refuse what peft lets pass: tensors that found no place, and places that found no tensor."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as stored:
        given = set(stored.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if odd := sorted(given ^ wanted):
        raise _unfit(base, adapter, f"{len(odd)} tensors without a partner, such as {odd[0]}")


def _refuse_tied_targets(model: Any, adapter: Path) -> None:
    """Merging into one of two tied matrices would silently change the other one too."""
    fields = adapter_fields(adapter)
    changed = {
        name.rpartition(".")[2]
        for key in ("target_modules", "modules_to_save")
        if isinstance(fields.get(key), list)
        for name in fields[key]
    }
    tied = changed & {"lm_head", "embed_tokens"}
    if tied and model.config.tie_word_embeddings:
        raise UsageError(
            f"the adapter in {adapter} changes {', '.join(sorted(tied))}, which the base ties to "
            "its other embedding: it cannot be merged",
            "train the adapter on attention and MLP projections only",
        )
