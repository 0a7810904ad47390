"""Writing a transformers model as a plain folder: config, one weights file, tokenizer, template.

`save_pretrained` of a model would import DeepSpeed where that is installed, which takes seconds and
prints to standard output, where `agent` prints answers. Writing the few files here does neither.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from agent.policies.weight_file import save_tensors

WEIGHTS = "model.safetensors"


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write `model` as bf16 and `tokenizer` to the existing folder `out`; same input, same bytes.

    The model is converted in place. Of tensors that share memory (tied embeddings) the first by
    name order of the model is written, as transformers does.

    Raises:
        OSError, safetensors.SafetensorError: the folder cannot be written.
    """
    import torch

    model = model.to(torch.bfloat16)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(str(out))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(str(out))
    save_tensors(_unshared(model), out / WEIGHTS)
    tokenizer.save_pretrained(str(out))


def _unshared(model: Any) -> dict[str, Any]:
    """The model's tensors by name, each memory once."""
    by_memory: dict[tuple[int, int], tuple[str, Any]] = {}
    for name, tensor in model.state_dict().items():
        by_memory.setdefault((tensor.data_ptr(), tensor.numel()), (name, tensor.contiguous()))
    return dict(by_memory.values())


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars inside: the caller reports progress in its own way.

    transformers' switch covers its own bars; the one that reads GGUF ignores it and writes to
    `sys.stderr`. Log records still appear, because handlers keep the stream they were made with.
    """
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
