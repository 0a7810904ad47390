"""A running `vllm serve` whose weights are ours to replace: what samples for training on other machines.

Prompts go in as token ids, and sampled ids come back with the model's own log-probabilities, so that
nothing is tokenised twice. The server has to be started for it; `COMMAND` says how. Weights get there as
files that it reads itself (`files`, the same machine or a shared disk), or over NCCL through vLLM's
weight-transfer API (`nccl`, from GPU to GPU).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from agent.http import PassingError, Retry, client, complaint, endpoint, persist, post, together
from agent.policies import weight_reader
from agent.policies.base import Completion, FinishReason, Policy, Request
from agent.policies.chat import ChatTemplate
from agent.policies.fingerprint import Fingerprint
from agent.policies.model_folder import config_version, weights_version
from agent.policies.vllm_worker import WorkerExtension, told_by
from kg.errors import PolicyUnavailableError

Transfer = Literal["files", "nccl"]

#: How the server is started. The routes that replace weights ask for no key: they belong on loopback or
#: a private network.
COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model FOLDER "
    "--host 127.0.0.1 --logprobs-mode raw_logprobs --generation-config vllm "
    f"--worker-extension-cls {WorkerExtension.__module__}.{WorkerExtension.__name__}"
)
#: What a server takes from the model's generation_config.json where a request says nothing: each would
#: sample from another distribution than the one whose log-probabilities are recorded.
_PLAIN = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
}
_NCCL = ' --weight-transfer-config \'{"backend": "nccl"}\''


class VllmServerPolicy(Policy):
    """A model behind a vLLM server that was started as `COMMAND` says.

    Args:
        url: of the server, without `/v1`.
        folder: the model that it was started with: tokenizer, chat template, names and shapes.
        name: how trajectories call it; the folder's name by default.
        transfer: how weights get there.
        api_key: sent as a bearer token; never logged.
        concurrency: requests in flight.
        connect, read: time-outs in seconds.

    Raises:
        UsageError: the URL or the key cannot be sent.
        PolicyUnavailableError: no such server, or one that was started otherwise.
    """

    engine = "vllm server"

    def __init__(
        self,
        url: str,
        folder: Path,
        name: str = "",
        transfer: Transfer = "files",
        api_key: SecretStr | None = None,
        concurrency: int = 64,
        connect: float = 10.0,
        read: float = 600.0,
    ) -> None:
        self.name = name or folder.name
        self.template = ChatTemplate.load(folder)
        self.version = weights_version(folder)
        self.config_version = config_version(folder)
        self._folder, self._transfer = folder, transfer
        self._tied = _tied(folder)
        self._url, self._key = url.rstrip("/"), api_key
        self._timeouts = (connect, read)
        self._gate = asyncio.Semaphore(concurrency)
        self._http: httpx.AsyncClient | None = None
        self._sender: Any = None
        self._model, self.context_length = self._greeted()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call, or one failure in it, closes the connections
        of all its requests."""
        return await together(self._one(request) for request in requests)

    async def load(self, weights: Path) -> None:
        """Replace the weights by those in `weights`, once what runs now has ended.

        Raises:
            PolicyUnavailableError: the folder does not fit, or the server did not take it.
        """
        version, place = await asyncio.to_thread(self._checked, weights)
        await self._call("/pause?mode=wait")
        try:
            if self._transfer == "files":
                await self._call("/collective_rpc", {"method": "turnwise_reload", "args": [place]})
            else:
                await self._call("/collective_rpc", {"method": "turnwise_erase"})
                await asyncio.to_thread(self._send, weights)
        finally:
            await self._call("/resume")
        await self.forget_prefixes()
        self.version = version

    async def forget_prefixes(self) -> None:
        """See `Policy.forget_prefixes`."""
        await self._call("/reset_prefix_cache")

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """See `Policy.fingerprints`. Of a server with several workers, each of which holds a part of
        every matrix, none can be read: what is told is whether every worker's part was overwritten."""
        found = await self._call("/collective_rpc", {"method": "turnwise_fingerprints"})
        return told_by(found["results"], self._folder)

    async def aclose(self) -> None:
        """Close the connections; the server runs on."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _greeted(self) -> tuple[str, int]:
        """The model's name on the server, and its context length.

        Raises:
            PolicyUnavailableError: no such server, or one that was started otherwise.
        """
        to, timeout = endpoint(self._url, "/v1/models", self._key), self._timeouts[0]
        try:
            models = httpx.get(to.url, headers=to.headers, timeout=timeout)
            models.raise_for_status()
            paused = httpx.get(endpoint(self._url, "/is_paused").url, timeout=timeout)
            first = models.json()["data"][0]
            found = str(first["id"]), int(first["max_model_len"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PolicyUnavailableError(
                f"no vLLM server at {to.shown}: {cause}", self._how()
            ) from error
        if not paused.is_success:
            raise PolicyUnavailableError(
                f"the server at {to.shown} does not let its weights be replaced", self._how()
            )
        return found

    def _how(self) -> str:
        return f"start it with: {COMMAND}{_NCCL if self._transfer == 'nccl' else ''}"

    async def _one(self, request: Request) -> Completion:
        async with self._gate:
            answer = await self._call("/v1/completions", self._body(request))
        try:
            done = _completion(request, answer["choices"][0])
        except (LookupError, TypeError, ValueError) as error:
            raise PolicyUnavailableError(
                f"the server's reply lacks what was asked for: {error!r}", self._how()
            ) from error
        if request.on_text and done.text:
            request.on_text(done.text)
        return done

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": self._model,
            "prompt": list(request.token_ids),
            "max_tokens": min(
                sampling.max_tokens, max(1, self.context_length - len(request.token_ids))
            ),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            **_PLAIN,
            "seed": sampling.seed,
            "stop": list(request.stop),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "prompt_logprobs": 0 if request.prompt_logprobs else None,
            "return_token_ids": True,
        }

    async def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST, and the reply's JSON; tried again where that is worth it.

        Raises:
            PolicyUnavailableError: the server refused, or cannot be reached.
        """
        if self._http is None:
            self._http = client(*self._timeouts)
        route, _, query = path.partition("?")
        to = endpoint(self._url, route, self._key)
        address = to.url.copy_with(query=query.encode() or None)
        attempt = partial(self._attempt, replace(to, url=address), body or {})
        return await persist(attempt, Retry(), to.shown)

    async def _attempt(self, to: Any, body: dict[str, Any]) -> Any:
        assert self._http is not None
        async with post(self._http, to, body) as response:
            text = (await response.aread()).decode("utf-8", "replace")
        said = to.redacted(text)
        if not response.is_success:
            raise PolicyUnavailableError(
                f"{to.shown} refused: status {response.status_code}: {complaint(said)}", self._how()
            )
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise PassingError(f"no JSON: {said[:80]!r}") from error

    def _checked(self, weights: Path) -> tuple[str, str]:
        """The version of weights that fit, and where the server finds them."""
        weight_reader.require_fit(self._folder, weights, self._tied)
        return weights_version(weights), str(weights.resolve())

    def _send(self, weights: Path) -> None:
        from agent.policies.weight_transfer import NcclSender

        if self._sender is None:
            self._sender = NcclSender(self._url, self._timeouts[1])
        self._sender.send(weights)


def _tied(folder: Path) -> bool:
    """Whether the model's head is its embedding."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _completion(request: Request, choice: dict[str, Any]) -> Completion:
    ids = tuple(map(int, choice["token_ids"]))
    logprobs = tuple(map(float, choice["logprobs"]["token_logprobs"]))
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
    return Completion(
        text=str(choice["text"]),
        token_ids=ids,
        logprobs=logprobs,
        prompt_logprobs=_of_prompt(request, choice.get("prompt_logprobs")),
        finish=FinishReason.LENGTH if choice["finish_reason"] == "length" else FinishReason.STOP,
        prompt_tokens=len(request.token_ids),
    )


def _of_prompt(request: Request, told: Any) -> tuple[float, ...]:
    """float[prompt], NaN for the first."""
    if not request.prompt_logprobs:
        return ()
    pairs = zip(request.token_ids, told, strict=True)
    return tuple(
        float(entry[str(token)]["logprob"]) if entry else float("nan") for token, entry in pairs
    )
