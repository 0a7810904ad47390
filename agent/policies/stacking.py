"""Two LoRA adapters, one trained on top of the other, as one.

W + s1 (B1 A1) + s2 (B2 A2) = W + s1 [B1, (s2 / s1) B2] [A1; A2]: a plain LoRA whose rank is the sum.
A policy that was trained from a base with an adapter is thus an adapter of the plain base again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.policies.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_digest, adapter_fields
from agent.policies.weight_file import save_tensors
from kg.errors import UsageError

if TYPE_CHECKING:
    import torch

_B = ".lora_B.weight"
#: Fields of peft's configuration that leave an adapter s (B A) on every matrix of its names, whatever
#: they hold; any other must be empty.
_PLAIN = frozenset((
    "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "task_type", "peft_type",
    "peft_version", "r", "lora_alpha", "lora_dropout", "target_modules", "megatron_core",
    "qalora_group_size",
))  # fmt: skip


def stack(first: Path, second: Path, out: Path) -> None:
    """Write one adapter that does what two do, the second of them trained on the first's base with the
    first merged in.

    Where one of them leaves a matrix alone, zeros stand in its place. The result names the first's base.
    Tensors stay bf16 where all are and none is rescaled; they are float32 otherwise.

    Args:
        first, second: peft LoRA folders.
        out: an existing folder.

    Raises:
        UsageError: one is no plain LoRA, or cannot be read.
        OSError: the result cannot be written.
    """
    import torch
    from safetensors.torch import load_file

    configs = [_plain_fields(folder) for folder in (first, second)]
    found = [load_file(folder / ADAPTER_WEIGHTS) for folder in (first, second)]
    ranks = [int(config["r"]) for config in configs]
    scales = [config["lora_alpha"] / rank for config, rank in zip(configs, ranks, strict=True)]
    factors = [1.0, scales[1] / scales[0]]
    stacked: dict[str, torch.Tensor] = {}
    for name in sorted({name for part in found for name in part}):
        axis = 1 if name.endswith(_B) else 0  # of the ranks: A[rank, in], B[out, rank]
        like = next(part[name] for part in found if name in part)
        parts = [
            _share(part.get(name), like, rank, axis) * (factor if axis else 1.0)
            for part, rank, factor in zip(found, ranks, factors, strict=True)
        ]
        stacked[name] = torch.cat(parts, dim=axis).contiguous()
    kinds = {tensor.dtype for part in found for tensor in part.values()}
    if kinds == {torch.bfloat16} and factors[1] == 1:
        stacked = {name: tensor.to(torch.bfloat16) for name, tensor in stacked.items()}
    save_tensors(stacked, out / ADAPTER_WEIGHTS)
    alpha = scales[0] * sum(ranks)
    made = {
        **configs[0],
        "r": sum(ranks),
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": sorted({name.split(".")[-3] for name in stacked}),
    }
    (out / ADAPTER_CONFIG).write_text(json.dumps(made, indent=2) + "\n", "utf-8")


def _share(tensor: torch.Tensor | None, like: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """float32: an adapter's part of a stacked tensor; zeros of its rank where it has none."""
    import torch

    if tensor is not None:
        return tensor.float()
    shape = list(like.shape)
    shape[axis] = rank
    return torch.zeros(shape)


def _plain_fields(adapter: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA.

    Raises:
        UsageError: it is none, or a file is missing.
    """
    adapter_digest(adapter)  # refuses what is not whole
    fields = adapter_fields(adapter)
    nothing = {"bias": "none", "init_lora_weights": True}
    more = [k for k, v in fields.items() if k not in _PLAIN and v and v != nothing.get(k)]
    if fields.get("peft_type") != "LORA" or not fields.get("lora_alpha"):
        more.append("another kind")
    if isinstance(fields.get("target_modules"), str):
        more.append("a pattern of names")
    if more:
        raise UsageError(
            f"the adapter in {adapter} is no plain LoRA ({', '.join(more)})",
            "export the policy merged",
        )
    return fields
