"""Writing weights: one safetensors file, as readable as the folder it is put into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous tensors that share no memory; same tensors, same bytes.

    safetensors keeps its files from everyone but their owner: an inference server that runs as another
    user could not read weights that a training run writes for it.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be written.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)
