"""A learner after an update, and the model folder that it writes, for tests of the weight sync."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from rl.engine import load_trainable
from rl.recipe import Lora


def updated(micro: Path, seed: int = 0, scale: float = 1e-3, lora: Lora | None = None):
    """The micro policy's learner, all that it trains moved a little."""
    model = load_trainable(micro, lora, torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * scale
    return model


def written(micro: Path, out: Path, tensors, dtype=torch.float32) -> Path:
    """A model folder with these tensors."""
    out.mkdir()
    for file in micro.iterdir():
        if file.suffix != ".safetensors" and file.name != "turnwise.json":
            (out / file.name).write_bytes(file.read_bytes())
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out
