"""What we add to vLLM's worker: it runs where the weights are, in this process or in a child of it.

vLLM mixes `WorkerExtension` into its worker class and calls the methods by name; arguments and results
are plain values, because they may cross between processes.

On a CPU vLLM 0.32 packs each linear layer's matrix for its kernels and drops the original. The kernel
itself gives the matrix back: it multiplies the identity, which is exact, since every sum has one term.
So what is attested is what the engine computes with.

What cannot be read back (workers that share each matrix, quantised layers) is erased before every load:
NaN takes its place, and a parameter in which none is left was overwritten.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.policies import weight_reader
from agent.policies.fingerprint import Fingerprint, dtype_name, fingerprint

log = logging.getLogger(__name__)

#: As it crosses between processes: type, shape, digest, whether it was overwritten.
Plain = tuple[str, list[int], str, bool]

_HEAD = "lm_head"
_ROWS = 4096  # of a matrix that are looked through at a time


class WorkerExtension:
    """Methods for vLLM's worker; the names must not be any of its own."""

    model_runner: Any
    parallel_config: Any
    turnwise_erased = False

    def turnwise_erase(self) -> None:
        """Put NaN in place of what cannot be read back: what a load leaves out shows then."""
        import torch

        model, everything = self.model_runner.get_model(), self._shares()
        with torch.inference_mode():
            for _, kind, module in _parameters(model):
                parameter = getattr(module, kind)
                if _erasable(parameter) and (everything or not _plain(module)):
                    parameter.data.fill_(math.nan)
        self.turnwise_erased = True

    def _shares(self) -> bool:
        """Whether other workers hold parts of the same matrices."""
        return int(self.parallel_config.world_size) > 1

    def turnwise_reload(self, folder: str) -> None:
        """Replace the weights by those of a model folder."""
        self.turnwise_erase()
        self.model_runner.reload_weights(weights_iterator=weight_reader.tensors(Path(folder)))
        _pack_heads(self.model_runner.get_model())

    def turnwise_fingerprints(self) -> dict[str, Plain]:
        """Of every parameter of the model, under the names of a model folder."""
        import torch

        with torch.inference_mode():
            return {
                name: (found.dtype, list(found.shape), found.digest, found.overwritten)
                for name, found in _fingerprints(
                    self.model_runner.get_model(), not self._shares(), self.turnwise_erased
                )
            }


def told_by(workers: Sequence[Mapping[str, Plain]], folder: Path) -> dict[str, Fingerprint]:
    """What one or several workers tell of their weights, under the names of a model folder.

    Of several, whole tensors that are alike in all of them are told as they are, of any other whether
    every part was overwritten. A name that no worker knows (one of several experts that are fused)
    stands for all that they hold.

    Args:
        workers: what `WorkerExtension.turnwise_fingerprints` gave in each.
        folder: the model that they run.
    """
    read = [{name: _unplain(plain) for name, plain in worker.items()} for worker in workers]
    if len(read) == 1:
        return read[0]
    left = {name for worker in read for name, told in worker.items() if not told.overwritten}

    def of(name: str, shape: tuple[int, ...]) -> Fingerprint:
        told = [worker[name] for worker in read if name in worker]
        if len(told) == len(read) and len(set(told)) == 1 and told[0].readable:
            return told[0]
        fresh = name not in left if told else not left
        return Fingerprint(told[0].dtype if told else "", shape, "", fresh)

    return {name: of(name, shape) for name, shape in weight_reader.shapes(folder).items()}


def _unplain(plain: Plain) -> Fingerprint:
    dtype, shape, digest, overwritten = plain
    return Fingerprint(dtype, tuple(shape), digest, overwritten)


def _pack_heads(model: Any) -> None:
    """Let the head multiply with what was loaded.

    vLLM 0.32 passes over a head that is tied to the embedding when it reloads: on a CPU the head's
    kernel would keep its packed copy of the old matrix.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if path.rpartition(".")[2] == _HEAD and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _parameters(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Path of a module, name of a parameter of its own, and the module; tied ones under each path."""
    for path, module in model.named_modules(remove_duplicate=False):
        for kind, _ in module.named_parameters(recurse=False):
            yield path, kind, module


def _fingerprints(model: Any, readable: bool, erased: bool) -> Iterator[tuple[str, Fingerprint]]:
    """Of one tensor after the other; only one is held a second time.

    Args:
        model: of the worker.
        readable: whether its parameters are whole.
        erased: whether those that are not told were erased before the last load.
    """
    packed = getattr(model, "packed_modules_mapping", {})
    for path, kind, module in _parameters(model):
        parameter = getattr(module, kind)
        values = _live(path, kind, module) if readable else None
        for name, part in _parts(path, kind, module, values, packed):
            if part is None:
                fresh = erased and _erasable(parameter) and not _blank(module, parameter)
                shape = tuple(parameter.shape)
                yield name, Fingerprint(dtype_name(parameter), shape, "", fresh)
            else:
                yield name, fingerprint(part)


def _erasable(parameter: Any) -> bool:
    """Whether NaN can be put into it: not into whole numbers, nor into what a kernel keeps to itself."""
    return bool(parameter.is_floating_point() and parameter.numel())


def _blank(module: Any, parameter: Any) -> bool:
    """Whether NaN is left anywhere in a parameter."""
    held = getattr(getattr(module, "shard_indices", None), "num_org_elements", None)
    values = parameter.data if held is None else parameter.data[:held]  # rows beyond are padding
    return any(bool(part.float().isnan().any()) for part in values.split(_ROWS))


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
