"""The embedded policy: a local model run by transformers, no server and no extra to install.

Concurrent requests are gathered into batches and decoded by one worker thread. It knows token ids
in, token ids and log-probabilities out; nothing of tools, formats or episodes. For many concurrent
episodes the vLLM policy is the faster engine; for one question on a laptop this one starts faster.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.policies.base import Completion, FinishReason, Policy, Request, Sampling
from agent.policies.chat import ChatTemplate, does_not_load
from agent.policies.fingerprint import Fingerprint, dtype_name, fingerprint
from agent.policies.model_folder import config_version, weights_version
from kg.cores import CORES
from kg.errors import PolicyUnavailableError, UsageError

if TYPE_CHECKING:
    import torch

_REUSE_AT_LEAST = 16  # shorter shared prefixes are not worth cropping a cache for
_STOP_WINDOW = 24  # tokens that are decoded to look for a stop string


@dataclass(eq=False)
class _Row:
    """One sequence of a batch while it is decoded."""

    request: Request
    future: asyncio.Future[Completion]
    loop: asyncio.AbstractEventLoop
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: tuple[float, ...] = ()
    shown: int = 0
    cached: int = 0
    finish: FinishReason | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> bool:
        return self.finish is not None or self.cancelled.is_set()


class TransformersPolicy(Policy):
    """A causal language model from a local folder.

    Args:
        folder: config, tokenizer with chat template, safetensors weights.
        name: how trajectories call it; the folder's name by default.
        dtype: `auto` (bfloat16 on a GPU, float32 on a CPU), `float32` or `bfloat16`.
        max_batch: sequences decoded together.
        reuse: keep the key-value cache of the last single sequence for the next turn.

    Raises:
        PolicyUnavailableError: the folder does not hold a model that loads.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "",
        dtype: str = "auto",
        max_batch: int = 16,
        reuse: bool = True,
    ) -> None:
        self.name = name or folder.name
        self.template = ChatTemplate.load(folder)
        self.version = weights_version(folder)
        self.config_version = config_version(folder)
        self.model = _load_model(folder, dtype)
        self.engine = f"transformers {dtype_name(self.model)}"
        self.context_length = int(self.model.config.max_position_embeddings)
        self.max_batch = max_batch
        self.reuse = reuse
        self._stop_ids = _stop_ids(self.model, self.template)
        self._waiting: list[_Row] = []
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._kept: tuple[list[int], Any] | None = None

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call frees its place in the batch.

        Raises:
            UsageError: a prompt that is empty, too long or not of this vocabulary, or no room for a
                token; nothing of the call is run, and others in the batch are not touched.
        """
        for request in requests:
            self._check(request)
        loop = asyncio.get_running_loop()
        rows = [_Row(request, loop.create_future(), loop) for request in requests]
        with self._lock:
            self._waiting += rows
        self._worker.submit(self._run)
        try:
            return list(await asyncio.gather(*(row.future for row in rows)))
        except asyncio.CancelledError:
            for row in rows:
                row.cancelled.set()
            raise

    def _check(self, request: Request) -> None:
        ids, vocabulary = request.token_ids, self.model.config.get_text_config().vocab_size
        if not ids:
            raise UsageError("a request to a token-exact policy has an empty prompt")
        if len(ids) >= self.context_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens; the policy reads {self.context_length}",
                "ask a shorter question or use a policy with a longer context",
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise UsageError(f"the prompt holds a token id outside 0..{vocabulary - 1}")
        if request.sampling.max_tokens < 1:
            raise UsageError(f"max_tokens is {request.sampling.max_tokens}, it must be at least 1")

    async def load(self, weights: Path) -> None:
        """Replace the weights by those in `weights`, a folder of the same architecture.

        Raises:
            PolicyUnavailableError: the folder cannot be read or does not fit.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load, weights)

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """See `Policy.fingerprints`; read between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._fingerprints)

    def _fingerprints(self) -> dict[str, Fingerprint]:
        return {name: fingerprint(tensor) for name, tensor in self.model.state_dict().items()}

    async def aclose(self) -> None:
        """Stop the worker once the running batch is done."""
        await asyncio.to_thread(self._worker.shutdown, True)

    def _load(self, weights: Path) -> None:
        fresh = _load_model(weights, str(self.model.dtype).removeprefix("torch."))
        ours, theirs = self.model.state_dict(), fresh.state_dict()
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
                raise PolicyUnavailableError(f"the tensor '{name}' of {weights} does not fit")
        self.model.load_state_dict(theirs)
        self._kept = None
        self.version = weights_version(weights)

    def _run(self) -> None:
        """Worker: decode one batch of whatever waits; every submit finds at least nothing to do."""
        with self._lock:
            batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
            more = bool(self._waiting)
        batch = [row for row in batch if not row.done]
        if batch:
            try:
                _Decoder(self, batch).run()
            except Exception as error:  # a failed batch must not leave its callers waiting
                for row in batch:
                    _settle(row, error)
        if more:
            self._worker.submit(self._run)


class _Decoder:
    """Decodes one batch to the end."""

    def __init__(self, policy: TransformersPolicy, rows: list[_Row]) -> None:
        import torch

        self.torch = torch
        self.policy = policy
        self.rows = rows
        self.device = policy.model.device
        self.alone = len(rows) == 1  # a batch that shrinks to one row keeps its padding
        self.generators = [torch.Generator().manual_seed(row.request.sampling.seed) for row in rows]

    def run(self) -> None:
        """Prefill, then one token a step; finished rows leave the batch at once."""
        with self.torch.inference_mode():
            self._score_prompts()
            logits, cache, mask = self._prefill()
            while True:
                self._sample(logits)
                keep = [i for i, row in enumerate(self.rows) if not row.done]
                for row in self.rows:
                    if row.done:
                        _settle(row, None, self.policy)
                if not keep:
                    break
                if len(keep) < len(self.rows):
                    mask = self._shrink(keep, cache, mask)
                logits, mask = self._step(cache, mask)
            self._retain(cache)

    def _score_prompts(self) -> None:
        """Each prompt that is to be scored on its own: a pass of its own, without cache and padding."""
        for row in self.rows:
            if row.request.prompt_logprobs:
                ids = self.torch.tensor([row.request.token_ids], device=self.device)
                logits = self._computed(input_ids=ids, use_cache=False).logits[0, :-1]
                found = logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
                row.prompt_logprobs = (math.nan, *found.tolist())

    def _prefill(self) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Last logits float[B, V], the cache and the mask int[B, L] of the left-padded prompts."""
        from transformers import DynamicCache

        prompts = [list(row.request.token_ids) for row in self.rows]
        cache, start = DynamicCache(config=self.policy.model.config), 0
        if len(prompts) == 1:
            cache, start = self._reused(prompts[0], cache)
        width = max(map(len, prompts))
        ids = self.torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = self.torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device
        )
        return self._forward(ids[:, start:], cache, mask), cache, mask

    def _reused(self, prompt: list[int], fresh: Any) -> tuple[Any, int]:
        kept, self.policy._kept = self.policy._kept, None
        if kept is None:
            return fresh, 0
        ids, cache = kept
        pairs = zip(ids, prompt, strict=False)
        differ = (i for i, (old, new) in enumerate(pairs) if old != new)
        shared = next(differ, min(len(ids), len(prompt)))
        shared = min(shared, len(prompt) - 1)
        if shared < _REUSE_AT_LEAST:
            return fresh, 0
        extra = cache.get_seq_length() - shared
        if extra > 0:
            cache.crop(-extra)
        self.rows[0].cached = shared
        return cache, shared

    def _retain(self, cache: Any) -> None:
        if not self.policy.reuse or not self.alone:
            return
        row = self.rows[0]
        ids = [*row.request.token_ids, *row.ids]
        self.policy._kept = (ids[: cache.get_seq_length()], cache)

    def _forward(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor) -> torch.Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        padded = None if self.alone else mask
        out = self._computed(
            input_ids=ids,
            attention_mask=padded,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _computed(self, **inputs: Any) -> Any:
        """One pass of the model; on a CPU in a turn of its own."""
        with CORES.turn(self.device.type == "cpu"):
            return self.policy.model(**inputs)

    def _step(self, cache: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.torch.tensor([[row.ids[-1]] for row in self.rows], device=self.device)
        mask = self.torch.cat([mask, mask.new_ones(len(self.rows), 1)], dim=1)
        return self._forward(last, cache, mask), mask

    def _shrink(self, keep: list[int], cache: Any, mask: torch.Tensor) -> torch.Tensor:
        cache.batch_select_indices(self.torch.tensor(keep, device=self.device))
        self.rows = [self.rows[i] for i in keep]
        self.generators = [self.generators[i] for i in keep]
        return mask[keep]

    def _sample(self, logits: torch.Tensor) -> None:
        """Draw one token a row and record its log-probability under the untruncated model."""
        logprobs = self.torch.log_softmax(logits, dim=-1).cpu()
        for row, values, generator in zip(self.rows, logprobs, self.generators, strict=True):
            token = _draw(values, row.request.sampling, generator)
            row.ids.append(token)
            row.logprobs.append(float(values[token]))
            row.finish = _finished(row, token, self.policy)
            _stream(row, self.policy)


def _draw(logprobs: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    import torch

    if sampling.temperature <= 0:
        return int(logprobs.argmax())
    scaled = logprobs / sampling.temperature
    if sampling.top_k:
        floor = scaled.topk(min(sampling.top_k, len(scaled))).values[-1]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    probabilities = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[(ordered.cumsum(0) - ordered) >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _finished(row: _Row, token: int, policy: TransformersPolicy) -> FinishReason | None:
    if token in policy._stop_ids:
        return FinishReason.STOP
    assert policy.template is not None
    if row.request.stop:
        tail = policy.template.decode(row.ids[-_STOP_WINDOW:])
        if any(stop in tail for stop in row.request.stop):
            return FinishReason.STOP
    spent = len(row.ids) >= row.request.sampling.max_tokens
    size = len(row.request.token_ids) + len(row.ids)
    return FinishReason.LENGTH if spent or size >= policy.context_length else None


def _stream(row: _Row, policy: TransformersPolicy) -> None:
    """Hand new text to the caller's loop; a character that is not whole yet waits."""
    if row.request.on_text is None:
        return
    assert policy.template is not None
    text = policy.template.decode(row.ids)
    if text.endswith("\ufffd") and row.finish is None:
        return
    piece, row.shown = text[row.shown :], len(text)
    if piece:
        _call(row.loop, row.request.on_text, piece)


def _settle(row: _Row, error: Exception | None, policy: TransformersPolicy | None = None) -> None:
    def finish() -> None:
        if row.future.done():
            return
        if error is not None:
            row.future.set_exception(_typed(error))
        elif row.cancelled.is_set():
            row.future.cancel()
        else:
            row.future.set_result(completion)

    if error is None:
        assert policy is not None
        assert policy.template is not None
        completion = Completion(
            text=policy.template.decode(row.ids),
            token_ids=tuple(row.ids),
            logprobs=tuple(row.logprobs),
            prompt_logprobs=row.prompt_logprobs,
            finish=row.finish or FinishReason.STOP,
            prompt_tokens=len(row.request.token_ids),
            cached_tokens=row.cached,
        )
    _call(row.loop, finish)


def _call(loop: asyncio.AbstractEventLoop, function: Any, *args: Any) -> None:
    """Call on the loop's thread; a loop that is gone has nobody left to tell."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)


def _typed(error: Exception) -> Exception:
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return PolicyUnavailableError(
            f"the policy ran out of memory: {error}", "lower the batch size or the context length"
        )
    return error


def _load_model(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise does_not_load(folder, error) from error
    if absent := sorted(found["missing_keys"]):  # transformers fills them at random
        raise PolicyUnavailableError(f"the model in {folder} lacks the tensor '{absent[0]}'")
    return model.to(device).eval()


def _stop_ids(model: Any, template: ChatTemplate) -> frozenset[int]:
    """The end-of-turn tokens of the model's configuration and its tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset([template.eos_id, *(int(i) for i in ids if i is not None)])
