"""How much of a device an update uses: model FLOPs, tokens a second, peak memory.

Model FLOPs are those of the policy's own forward and backward pass over the tokens that are computed:
6 N a token where all N weights are trained, 4 N where they are frozen under adapters (the gradient goes
through them and not into them), 6 for each weight of an adapter. Not counted are attention, the
vocabulary projection (computed at loss tokens alone), the embedding (a look-up), activations that are
computed again, and passes without a gradient (ratios, anchor). So the utilisation is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import torch

from rl import ranks
from rl.step import UpdateStats
from rl.step_metrics import Metrics

#: Dense bfloat16 FLOP/s by part of the device's name, as its maker states them.
_PEAKS = {"H200": 989.5e12, "H100 80GB HBM3": 989.5e12, "H100 PCIe": 756e12, "A100": 312e12}


def flops_per_token(module: Any) -> int:
    """Model FLOPs of one token, forward and backward, of a dense model.

    Args:
        module: `rl.engine.TargetLogprobs`, under DeepSpeed too.
    """
    model = module.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    out = {id(one.weight) for one in ends if one is not None}
    return sum(
        _size(p) * (6 if p.requires_grad else 4) for p in model.parameters() if id(p) not in out
    )


def _size(parameter: Any) -> int:
    """Of the whole parameter, of which ZeRO 3 keeps a part."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def peak_flops(given: float, dtype: str) -> float:
    """FLOP/s that all devices of the run could reach at most; 0 where nobody knows.

    Args:
        given: of one device, 10^12 FLOP/s; 0 for what its maker states.
        dtype: of the update.
    """
    one = given * 1e12 or (_stated() if dtype == "bfloat16" else 0.0)
    return one * torch.distributed.get_world_size()


def _stated() -> float:
    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in _PEAKS.items() if part in name), 0.0)


def watch_memory() -> None:
    """Begin to look for the peak of the device's memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def of_memory() -> Metrics:
    """`resident_gib`: what a process of the run holds of the machine's memory now, at most. With CUDA,
    `memory_gib`: what PyTorch held on a device of the run since `watch_memory`, at most. Both with an
    engine in the same process. Every process calls it."""
    found = {"resident_gib": max(ranks.gathered(psutil.Process().memory_info().rss / 2**30))}
    if torch.cuda.is_available():
        found["memory_gib"] = max(ranks.gathered(torch.cuda.max_memory_allocated() / 2**30))
    return found


def of_speed(
    updates: Sequence[UpdateStats], seconds: float, per_token: float, peak: float
) -> Metrics:
    """What a step's updates computed, and how fast.

    Args:
        updates: of one step, each of all processes together.
        seconds: that they took.
        per_token: model FLOPs of a token.
        peak: FLOP/s of all devices; 0 where it is not known.

    Returns:
        `update_tokens` and `update_flops` of the step; `speed/update_tokens` and `speed/update_flops` a
        second; `speed/utilisation`, the share of the peak, where that is known.
    """
    tokens = sum(one.figures.get("computed", 0.0) for one in updates)
    flops = tokens * per_token
    rate = 1 / seconds if seconds > 0 else float("nan")
    found = {"update_tokens": tokens, "update_flops": flops}
    found |= {"speed/update_tokens": tokens * rate, "speed/update_flops": flops * rate}
    return found | ({"speed/utilisation": flops * rate / peak} if peak > 0 else {})
