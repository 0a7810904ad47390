"""The vLLM policy: one engine, continuously batched, for many episodes at once.

vLLM's engine is synchronous; a thread of ours steps it and hands results back to the callers' event
loops. Token ids go in and come out; stop strings are matched by vLLM and stay in the text.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from agent.policies.base import Completion, FinishReason, Policy, Request
from agent.policies.chat import ChatTemplate
from agent.policies.fingerprint import Fingerprint
from agent.policies.model_folder import config_version, weights_version
from agent.policies.vllm_engine import Delta, Engine, EngineOptions
from kg.errors import PolicyUnavailableError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """A request inside the engine."""

    request: Request
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Completion]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: tuple[float, ...] = ()
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
        cache_gib: size of the key-value cache. 0: on a GPU what `gpu_memory` leaves; on a CPU what
            VLLM_CPU_KVCACHE_SPACE says, else a quarter of the free memory, at most 4, and no more
            than `max_num_seqs` of the greatest length fill: it is cleared at the start.
        gpu_memory: share of the GPU's memory for weights and cache.
        tensor_parallel: workers that share each matrix, on a GPU each.
        isolated: the engine runs in a child process that knows nothing of a launcher's world of
            processes. For a process that has joined one (torchrun, deepspeed), where an engine of its
            own would take that world for its own; a script that does so guards its start with
            `if __name__ == "__main__"`. Other threads must not read RANK and its like while it starts.
            The child hears no Ctrl-C, and ends when this process does, however that ends.

    vLLM's groups of processes are global: of two engines that are not isolated, closing one ends the
    other.

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
        cache_gib: float = 0.0,
        gpu_memory: float = 0.9,
        isolated: bool = False,
        tensor_parallel: int = 1,
    ) -> None:
        self.name = name or folder.name
        self.template = ChatTemplate.load(folder)
        self.version = weights_version(folder)
        self.config_version = config_version(folder)
        options = EngineOptions(
            dtype,
            max_model_len,
            max_num_seqs,
            prefix_caching,
            eager,
            cache_gib,
            gpu_memory,
            isolated,
            tensor_parallel,
        )
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._keys = map(str, itertools.count())
        self._lock = threading.Lock()
        self._open = True
        self._expected = 0
        self._waiting: dict[str, _Running] = {}
        started: Future[Engine] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(folder, options, started), name="vllm", daemon=True
        )
        self._thread.start()
        self.context_length = started.result().context_length
        self.engine = f"vllm {started.result().dtype}"

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call, or one failure in it, aborts its requests in
        the engine."""
        loop = asyncio.get_running_loop()
        running = {next(self._keys): _Running(r, loop, loop.create_future()) for r in requests}
        self._submit(lambda: self._waiting.update(running))
        try:
            return list(await asyncio.gather(*(item.future for item in running.values())))
        except BaseException:
            for item in running.values():
                item.future.cancel()
            if self._open:
                self._inbox.put(lambda: self._abort(list(running)))
            raise

    async def load(self, weights: Path) -> None:
        """Replace the weights by those in `weights`, once what runs now has ended.

        Raises:
            PolicyUnavailableError: the folder cannot be read or does not fit.
        """
        done: Future[None] = Future()
        self._submit(lambda: self._drained(lambda: self._replace(weights), done))
        await asyncio.wrap_future(done)

    async def forget_prefixes(self) -> None:
        """See `Policy.forget_prefixes`; once what runs now has ended."""
        done: Future[None] = Future()
        self._submit(lambda: self._drained(self._engine.forget_prefixes, done))
        await asyncio.wrap_future(done)

    def expect(self, callers: int) -> None:
        """See `Policy.expect`."""
        self._submit(lambda: self._set_expected(callers))

    def _set_expected(self, callers: int) -> None:
        self._expected = callers

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """See `Policy.fingerprints`; read between two steps."""
        told: Future[dict[str, Fingerprint]] = Future()
        self._submit(lambda: self._tell_fingerprints(told))
        return await asyncio.wrap_future(told)

    async def aclose(self) -> None:
        """Stop the engine and give its memory back; requests in flight fail."""
        with self._lock:
            if self._open:
                self._open = False
                self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: Callable[[], None]) -> None:
        with self._lock:  # nothing may come behind the None that ends the thread
            if not self._open:
                raise PolicyUnavailableError(f"policy '{self.name}' is closed")
            self._inbox.put(job)

    def _serve(self, folder: Path, options: EngineOptions, started: Future[Engine]) -> None:
        """The engine's thread: start, then step while there is work."""
        try:
            self._engine = Engine(folder, options)
        except BaseException as error:  # the constructor waits for either
            started.set_exception(error)
            return
        started.set_result(self._engine)
        while self._take():
            if self._running:
                self._step()
        self._fail_all(PolicyUnavailableError(f"policy '{self.name}' was closed"))
        self._engine.close()

    def _take(self) -> bool:
        """Run what waits in the inbox, waiting for it when there is nothing to step."""
        while True:
            try:
                job = self._inbox.get(block=not self._ready())
            except Empty:
                self._admit()
                return True
            if job is None:
                return False
            job()

    def _ready(self) -> bool:
        """Whether there is something to step, and everybody who is expected is in."""
        there = len(self._running) + len(self._waiting)
        return there > 0 and there >= self._expected

    def _admit(self) -> None:
        """Put what waits into the engine, in an order that does not depend on when it came."""
        waiting, self._waiting = self._waiting, {}
        if self._expected:
            order = sorted(waiting, key=lambda key: _rank(waiting[key].request))
            waiting = {key: waiting[key] for key in order}
        self._add(waiting)

    def _add(self, items: dict[str, _Running]) -> None:
        for key, item in items.items():
            if item.future.cancelled():
                continue
            try:
                self._engine.add(key, item.request)
            except Exception as error:
                _tell(item, _settle, item, error)
            else:
                self._running[key] = item

    def _abort(self, keys: Sequence[str]) -> None:
        """Take requests out of the engine; their callers have left or know already."""
        for key in keys:
            self._running.pop(key, None)
            self._waiting.pop(key, None)
        try:
            self._engine.abort(keys)
        except Exception:  # the callers that wait hear of it from the next step
            log.exception("vLLM did not abort %d requests", len(keys))

    def _drained(self, work: Callable[[], None], done: Future[None]) -> None:
        """Let what runs end, then do `work` between two steps."""
        if not done.set_running_or_notify_cancel():
            return
        try:
            self._admit()
            while self._running:
                self._step()
            work()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _replace(self, weights: Path) -> None:
        self._engine.reload(weights)
        self.version = weights_version(weights)

    def _tell_fingerprints(self, told: Future[dict[str, Fingerprint]]) -> None:
        if not told.set_running_or_notify_cancel():
            return
        try:
            told.set_result(self._engine.fingerprints())
        except Exception as error:
            told.set_exception(error)

    def _step(self) -> None:
        try:
            deltas = self._engine.step()
        except Exception as error:
            log.exception("vLLM step failed")
            keys = list(self._running)
            self._fail_all(PolicyUnavailableError(f"the vLLM engine failed: {error}"))
            self._abort(keys)
            return
        for delta in deltas:
            item = self._running.get(delta.key)
            if item is not None:
                self._receive(item, delta)

    def _receive(self, item: _Running, delta: Delta) -> None:
        """Add a delta to its request, stream it, and settle the request at its end."""
        item.ids += delta.token_ids
        item.logprobs += delta.logprobs
        item.text += delta.text
        item.prompt_logprobs = delta.prompt_logprobs or item.prompt_logprobs
        item.cached = delta.cached or item.cached
        if delta.text and item.request.on_text:
            _tell(item, item.request.on_text, delta.text)
        if delta.finish is not None:
            del self._running[delta.key]
            _tell(item, _settle, item, _completion(item, delta.finish))

    def _fail_all(self, error: Exception) -> None:
        for item in (*self._running.values(), *self._waiting.values()):
            _tell(item, _settle, item, error)
        self._running.clear()
        self._waiting.clear()


def _rank(request: Request) -> tuple[tuple[int, ...], int]:
    return request.token_ids, request.sampling.seed


def _completion(item: _Running, finish: FinishReason) -> Completion:
    return Completion(
        text=item.text,
        token_ids=tuple(item.ids),
        logprobs=tuple(item.logprobs),
        prompt_logprobs=item.prompt_logprobs,
        finish=finish,
        prompt_tokens=len(item.request.token_ids),
        cached_tokens=item.cached,
    )


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
