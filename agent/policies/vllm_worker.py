"""What we add to vLLM's worker: it runs where the weights are, in this process or in a child of it.

vLLM mixes `WorkerExtension` into its worker class and calls the methods by name; arguments and results
are plain values, because they may cross between processes.

On a CPU vLLM 0.32 packs each linear layer's matrix for its kernels and drops the original. The kernel
itself gives the matrix back: it multiplies the identity, which is exact, since every sum has one term.
So what is attested is what the engine computes with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.policies import weight_reader
from agent.policies.fingerprint import Fingerprint, dtype_name, fingerprint

log = logging.getLogger(__name__)

#: As it crosses between processes: type, shape, digest.
Plain = tuple[str, list[int], str]

_HEAD = "lm_head"


class WorkerExtension:
    """Methods for vLLM's worker; the names must not be any of its own."""

    model_runner: Any

    def turnwise_reload(self, folder: str) -> None:
        """Replace the weights by those of a model folder."""
        self.model_runner.reload_weights(weights_iterator=weight_reader.tensors(Path(folder)))
        _pack_heads(self.model_runner.get_model())

    def turnwise_fingerprints(self) -> dict[str, Plain]:
        """Of every parameter of the model, under the names of a model folder."""
        import torch

        with torch.inference_mode():
            return {
                name: (found.dtype, list(found.shape), found.digest)
                for name, found in _fingerprints(self.model_runner.get_model())
            }


def unplain(plain: Plain) -> Fingerprint:
    """A fingerprint that came from a worker."""
    dtype, shape, digest = plain
    return Fingerprint(dtype, tuple(shape), digest)


def _pack_heads(model: Any) -> None:
    """Let the head multiply with what was loaded.

    vLLM 0.32 passes over a head that is tied to the embedding when it reloads: on a CPU the head's
    kernel would keep its packed copy of the old matrix.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if path.rpartition(".")[2] == _HEAD and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _fingerprints(model: Any) -> Iterator[tuple[str, Fingerprint]]:
    """Of one tensor after the other; only one is held a second time."""
    packed = getattr(model, "packed_modules_mapping", {})
    for path, module in model.named_modules(remove_duplicate=False):
        for kind, parameter in module.named_parameters(recurse=False):
            for name, part in _parts(path, kind, module, _live(path, kind, module), packed):
                if part is None:
                    yield name, Fingerprint(dtype_name(parameter), tuple(parameter.shape), "")
                else:
                    yield name, fingerprint(part)


def _live(path: str, kind: str, module: Any) -> Any:
    """The values of a parameter as the engine computes with them; None where it keeps them to itself."""
    stored = getattr(module, kind)
    if not _plain(module):
        return None
    if not _packed_for_cpu(path, module):
        return stored if stored.numel() else None
    if kind == "weight":
        return _through_kernel(module)
    return _narrowed(stored, module.weight.dtype)


def _plain(module: Any) -> bool:
    """Whether a module's parameters are the model's own values: no quantisation."""
    method = getattr(module, "quant_method", None)
    return method is None or type(method).__name__.startswith("Unquantized")


def _packed_for_cpu(path: str, module: Any) -> bool:
    """Whether products go through a packed copy. Looking up an embedding does not, the head does, and
    with tied weights both may be one module."""
    looks_up = hasattr(module, "org_vocab_size") and path.rpartition(".")[2] != _HEAD
    return getattr(module, "cpu_linear", None) is not None and not looks_up


def _through_kernel(module: Any) -> Any:
    """The matrix [out, in] that a CPU kernel multiplies with."""
    import torch

    width = getattr(module, "input_size_per_partition", 0) or module.embedding_dim
    identity = torch.eye(width, dtype=module.weight.dtype)
    try:
        return module.cpu_linear(identity, module.weight, None).t()
    except Exception:  # whichever kernel: what it does not give back is told as unreadable
        log.exception("a packed matrix of %s cannot be read back", type(module).__name__)
        return None


def _narrowed(values: Any, dtype: Any) -> Any:
    """A bias that some kernels want in float32, in the model's type again where nothing is lost."""
    narrow = values.to(dtype)
    return narrow if bool((narrow.to(values.dtype) == values).all()) else values


def _parts(
    path: str, kind: str, module: Any, values: Any, packed: dict[str, list[str]]
) -> Iterator[tuple[str, Any]]:
    """The tensors of a model folder that one parameter holds: fused projections are cut apart."""
    parent, _, own = path.rpartition(".")
    names = [".".join(filter(None, (parent, name, kind))) for name in packed.get(own, [own])]
    sizes = list(getattr(module, "output_sizes", ()))
    if values is not None and hasattr(module, "org_vocab_size"):
        values = values[: module.org_vocab_size]  # rows beyond are padding
    if len(names) == 1 or values is None:
        yield from ((name, values) for name in names)
    elif len(sizes) != len(names) or sum(sizes) != len(values):
        yield from ((name, None) for name in names)
    else:
        edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        yield from (
            (name, values[a:b]) for name, (a, b) in zip(names, pairwise(edges), strict=True)
        )
