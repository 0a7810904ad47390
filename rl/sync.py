"""Attested weight sync: an engine samples for training only with weights proven to be the learner's.

After every update the learner's folder is loaded and two things are compared. Fingerprints: every
tensor, read back from the engine's memory, against the learner's own. A canary: the log-probabilities
of one fixed text, computed by both. The first finds a single changed element; the second finds what
weights do not show: stale kernels, stale caches, another computation.

What an engine cannot give back (`Delivery.by_canary`) has a weaker proof. In bfloat16 the canary allows
a gap that is larger than what a small step changes: it would not notice weights that never came. So such
a tensor must be the learner's in the folder, the engine must show that it erased the old values before
it loaded and that nothing erased is left, and the canary must agree. An engine that cannot show that is
refused. That what was written is what the folder holds rests on the canary.

The learner's folder and `deliver` must get the same tensors: `weights_of` makes them for both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agent.policies import weight_reader
from agent.policies.base import Policy, Request, Sampling
from agent.policies.fingerprint import Fingerprint, dtype_name, fingerprint
from kg.errors import TurnwiseError

if TYPE_CHECKING:
    import torch

    from agent.policies.chat import ChatTemplate
    from rl.engine import Adapter

Logprobs = npt.NDArray[np.float32]

#: Largest gap of the canary in nats, by the coarsest type in play. Two computations in float32 differ by
#: about 1e-5; bfloat16 on one side moves a token of the shipped models by 0.03 to 0.06, the worst of 80
#: by 0.1 to 0.4.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.2}
_QUESTION = (
    "Which element did Lise Meitner and Otto Hahn find in 1917, and in what year was she born?"
)
_REPLY = "They found protactinium, element 91. She was born in Vienna on 7 November 1878."
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class SyncError(TurnwiseError):
    """The engine does not hold the learner's weights; nothing may be sampled from it."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed text whose log-probabilities tell two computations apart.

    Attributes:
        token_ids: two or more.
    """

    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, template: ChatTemplate) -> Canary:
        """A fixed question and its reply, as the model's chat template writes them."""
        opening = template.opening(({"role": "user", "content": _QUESTION},))
        return cls((*opening, *template.encode(_REPLY)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A sync that was attested.

    Attributes:
        version: of the weights, as the policy names them from now on.
        seconds: for loading and attesting.
        tensors: compared by fingerprint, all of them equal.
        by_canary: names of tensors that the engine does not give back: they were overwritten, and the
            canary stands for their values.
        gap: the largest difference of the canary's log-probabilities, in nats.
    """

    version: str
    seconds: float
    tensors: int
    by_canary: tuple[str, ...]
    gap: float


async def deliver(
    policy: Policy,
    folder: Path,
    expected: Mapping[str, torch.Tensor] | None,
    canary: Canary,
    canary_logprobs: Logprobs,
    tolerance: float | None = None,
) -> Delivery:
    """Load a model folder into a policy and prove that it now computes with the learner's weights.

    Args:
        policy: token-exact; what it runs ends under the old weights.
        folder: written from `expected`.
        expected: the learner's tensors by their names in the folder; tied ones under one name or both.
            They are rounded as the folder and the engine round them before they are compared. None
            leaves the proof to the canary, which does not notice a small difference.
        canary: what was scored.
        canary_logprobs: float32[tokens - 1] in nats, of `learner_logprobs`.
        tolerance: the largest gap in nats; None takes that of the coarsest type among
            the engine's, the folder's and the learner's in `TOLERANCES`.

    Raises:
        SyncError: a tensor or the canary differs, or a tensor can neither be read nor be shown to have
            been overwritten. The policy must not be sampled from.
        PolicyUnavailableError: the folder does not load, or the policy is not ours to load.
    """
    began = time.perf_counter()
    await policy.load(folder)
    live = await policy.fingerprints()
    by_canary: tuple[str, ...] = tuple(live)
    if expected is not None:
        by_canary = await asyncio.to_thread(_compare, live, expected, folder, policy.name)
    found = await engine_logprobs(policy, canary)
    gap = _gap(found, canary_logprobs)
    allowed = _tolerance(live, expected, folder) if tolerance is None else tolerance
    if not gap <= allowed:  # NaN is no agreement
        raise SyncError(
            f"after loading {folder}, policy '{policy.name}' and the learner differ by {gap:.3g} nats a "
            f"token on the canary; {allowed:.3g} are allowed",
            "restart the engine and load again; if it stays, compare both sides' dtype and attention "
            "in float32 (agent doctor)",
        )
    seconds = time.perf_counter() - began
    return Delivery(policy.version, seconds, len(live) - len(by_canary), by_canary, gap)


async def engine_logprobs(policy: Policy, canary: Canary) -> Logprobs:
    """float32[tokens - 1]: the canary's log-probabilities in nats, by a policy's engine.

    Raises:
        SyncError: the policy tells none.
    """
    request = Request((), canary.token_ids, Sampling(max_tokens=1), prompt_logprobs=True)
    [done] = await policy.generate([request])
    if len(done.prompt_logprobs) != len(canary.token_ids):
        raise SyncError(
            f"policy '{policy.name}' tells no log-probabilities of a prompt",
            "train with an engine that does: vllm:NAME or a local folder",
        )
    return np.asarray(done.prompt_logprobs[1:], dtype=np.float32)


def learner_logprobs(model: torch.nn.Module, canary: Canary) -> Logprobs:
    """float32[tokens - 1]: the same by the learner. Every process of the run must call it.

    Args:
        model: an `rl.engine.TargetLogprobs`, or the DeepSpeed engine around one; its attention may be
            the packed one or that of a token tree.
    """
    import torch

    from rl.attention import row_lengths
    from rl.tree import build_tree
    from rl.tree_attention import on_tree

    ids = np.asarray(canary.token_ids, dtype=np.int64)
    device = next(model.parameters()).device
    row = torch.from_numpy(ids).to(device)
    places = torch.arange(len(ids), device=device)
    tree = build_tree([ids])
    with torch.no_grad(), _evaluating(model), row_lengths([len(ids)]), on_tree(tree, device):
        found = model(row, places, places[1:])
    return np.asarray(found.float().cpu().numpy(), dtype=np.float32)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The learner's tensors by their names in a model folder, adapters merged in, tied ones once.

    Full weights are not copied; a merged matrix is float32, W + scaling (B A) computed in float32, as
    `agent.policies.merge` does it.

    Args:
        model: a causal language model, plain or of peft, also inside `rl.engine.TargetLogprobs` or a
            DeepSpeed engine. Under ZeRO 3 call this, and use what it gives, within `rl.engine.whole`.

    Raises:
        SyncError: a parameter is not whole, or an adapter is of a kind that is not merged here.
    """
    return {_plain_name(piece.name): piece.tensor() for piece in _pieces(model)}


def collected(engine: Any, base: str, keep: bool) -> tuple[dict[str, torch.Tensor], Adapter | None]:
    """What `weights_of` and `rl.engine.adapter_of` give, where every process need not hold it all: under
    ZeRO 3 one tensor after the other is gathered, and copied to the memory of the host.

    Args:
        engine: of DeepSpeed; every process of the run calls this.
        base: what the adapter's configuration names as its base.
        keep: whether this process wants them; the others get nothing.
    """
    from rl.engine import adapter_of, whole

    if not engine.zero_optimization_partition_weights():
        return (weights_of(engine), adapter_of(engine, base)) if keep else ({}, None)
    found: dict[str, torch.Tensor] = {}
    for piece in _pieces(engine):
        with whole(engine, piece.needed):
            if keep:
                found[_plain_name(piece.name)] = piece.tensor().to("cpu", copy=True)
    trained = [p for name, p in engine.module.named_parameters() if "lora_" in name]
    with whole(engine, trained):
        adapter = adapter_of(engine, base) if keep else None
        if adapter is not None:
            held = {
                name: one.detach().to("cpu", copy=True) for name, one in adapter.tensors.items()
            }
            adapter = adapter._replace(tensors=held)
    return found, adapter


@dataclass(frozen=True)
class _Piece:
    """One tensor of a model folder, before it is made.

    Attributes:
        needed: the parameters that it is made of.
        adapted: the layer whose adapters are merged into it, if any.
    """

    name: str
    needed: tuple[torch.nn.Parameter, ...]
    adapted: Any = None

    def tensor(self) -> torch.Tensor:
        """Raises SyncError where a parameter is not whole, or an adapter of another kind."""
        if not all(parameter.numel() for parameter in self.needed):
            raise SyncError(
                f"the learner's '{self.name}' is not whole", "gather it: rl.engine.whole"
            )
        if self.adapted is None:
            return self.needed[0].detach()
        return _merged(self.name, self.adapted)


def _pieces(model: Any) -> Iterator[_Piece]:
    """See `weights_of`; nothing is read yet."""
    from rl.engine import TargetLogprobs

    inner: Any = getattr(model, "module", model)  # of a DeepSpeed engine
    inner = inner.model if isinstance(inner, TargetLogprobs) else inner
    layers = dict(inner.named_modules())
    for name, parameter in inner.named_parameters():
        path, _, own = name.rpartition(".")
        if "lora_" in name:
            continue
        adapted = layers[path.removesuffix(".base_layer")] if path.endswith(".base_layer") else None
        if adapted is None or own != "weight":
            yield _Piece(name, (parameter,))
        else:
            added = (p for other, p in adapted.named_parameters() if "lora_" in other)
            yield _Piece(name, (parameter, *added), adapted)


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _merged(name: str, layer: Any) -> torch.Tensor:
    """float32[out, in]: a layer's matrix with its active adapters added."""
    matrix: torch.Tensor = layer.base_layer.weight.detach().float()
    for adapter in layer.active_adapters:
        pair = getattr(layer, "lora_A", {}), getattr(layer, "lora_B", {})
        odd = getattr(layer, "lora_variant", {}) or getattr(layer, "fan_in_fan_out", False)
        if odd or not all(adapter in part for part in pair):
            raise SyncError(
                f"the adapter on '{name}' is no plain LoRA", "train with LoRA on linear layers"
            )
        a, b = (part[adapter].weight.detach().float() for part in pair)
        matrix = matrix + (b @ a) * layer.scaling[adapter]
    return matrix


def _compare(
    live: Mapping[str, Fingerprint],
    expected: Mapping[str, torch.Tensor],
    folder: Path,
    policy: str,
) -> tuple[str, ...]:
    """Hold every live tensor against the learner's; the names of those that cannot be read.

    Raises:
        SyncError: one differs, or is on one side only.
    """
    if absent := sorted(expected.keys() - live.keys()):
        raise SyncError(
            f"the learner's tensor '{absent[0]}' is not in policy '{policy}' ({len(absent)} such)",
            "load the policy from the base model that is trained; merge an adapter first",
        )
    stored = weight_reader.dtypes(folder)
    wrong: list[tuple[str, str]] = []
    for name, told in live.items():
        source = _source(name, expected)
        if not told.readable:
            if blame := _unproven(source, told, expected, folder):
                wrong.append((name, blame))
        elif source is None:
            wrong.append((name, "is not among the learner's"))
        elif _as_held(expected[source], stored.get(source), told.dtype) != told:
            wrong.append((name, _blame(source, expected[source], folder)))
    if wrong:
        raise _mismatch(wrong, len(live), folder, policy)
    return tuple(name for name, told in live.items() if not told.readable)


def _unproven(
    source: str | None, told: Fingerprint, expected: Mapping[str, torch.Tensor], folder: Path
) -> str:
    """What is missing to believe in a tensor that cannot be read back; "" when nothing is. One that the
    learner does not have was made from others, as the scales of a quantised layer are."""
    if not told.overwritten:
        return "can neither be read back nor be shown to have been overwritten"
    if source is None or _kept(source, expected[source], folder):
        return ""
    return "differs in the folder already"


def _source(name: str, expected: Mapping[str, torch.Tensor]) -> str | None:
    """Under which name the learner has a live tensor: a tied head is its embedding."""
    if name in expected:
        return name
    embeddings = [other for other in expected if other.endswith(_EMBEDDING)]
    return embeddings[0] if name.endswith(_HEAD) and len(embeddings) == 1 else None


def _as_held(tensor: torch.Tensor, stored: str | None, held: str) -> Fingerprint:
    """The fingerprint of a learner's tensor, rounded by the folder first and by the engine then."""
    import torch

    rounded = tensor.detach().to(getattr(torch, stored)) if stored else tensor.detach()
    return fingerprint(rounded.to(getattr(torch, held)))


def _blame(name: str, tensor: torch.Tensor, folder: Path) -> str:
    """Whether the folder or the engine has other values than the learner."""
    if weight_reader.tensor(folder, name) is None:
        return "differs and is not in the folder"
    same = _kept(name, tensor, folder)
    return "differs in the engine, not in the folder" if same else "differs in the folder already"


def _kept(name: str, tensor: torch.Tensor, folder: Path) -> bool:
    """Whether a folder holds a learner's tensor, rounded to the type that it stores."""
    stored = weight_reader.tensor(folder, name)
    if stored is None:
        return False
    return _as_held(tensor, None, dtype_name(stored)) == fingerprint(stored)


def _mismatch(wrong: list[tuple[str, str]], tensors: int, folder: Path, policy: str) -> SyncError:
    name, blame = wrong[0]
    hint = "load the folder again; if it stays, restart the engine"
    if "folder already" in blame:
        hint = "write the folder from weights_of(model) after the update, then load it again"
    elif "overwritten" in blame:
        hint = (
            "the load left it out, or the engine keeps it where it cannot be erased: use one of "
            "one worker without quantisation"
        )
    return SyncError(
        f"after loading {folder}, policy '{policy}' does not hold the learner's weights: '{name}' "
        f"{blame} ({len(wrong)} of {tensors} tensors)",
        hint,
    )


def _gap(ours: Logprobs, theirs: Logprobs) -> float:
    """The largest difference in nats; NaN where either has one."""
    if ours.shape != theirs.shape:
        raise SyncError(
            f"the canary has {len(ours)} log-probabilities in the engine, {len(theirs)} in the learner",
            "score one canary on both sides",
        )
    return float(np.abs(ours - theirs).max())


def _tolerance(
    live: Mapping[str, Fingerprint], expected: Mapping[str, torch.Tensor] | None, folder: Path
) -> float:
    """That of the coarsest type among the engine's, the folder's and the learner's."""
    kinds = {told.dtype for told in live.values()} | set(weight_reader.dtypes(folder).values())
    kinds |= {dtype_name(tensor) for tensor in (expected or {}).values()}
    return max(TOLERANCES.get(kind, 0.0) for kind in kinds)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off within."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
