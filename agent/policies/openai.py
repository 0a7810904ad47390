"""Any OpenAI-compatible server as a policy, by Chat Completions.

Replies are always streamed, so that giving up on one closes the connection and stops the server.
A server that rejects an optional field is asked again without it, and, where that helped, not sent
it any more. What was handed on as text is never asked for twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from agent.http import PassingError, Retry, client, complaint, endpoint, persist, post, together
from agent.policies.base import Completion, Policy, Request
from agent.policies.openai_reply import Reply, read
from kg.errors import PolicyUnavailableError

log = logging.getLogger(__name__)

# what a server may refuse and the reply still means the same, or nearly so; never tools or messages
_OPTIONAL = (
    *("return_token_ids", "logprobs", "stream_options", "seed"),
    *("top_k", "top_p", "temperature", "stop"),
)
_STOPS = 4  # as many as the API takes; the others are looked for here
_HINTS = {
    401: "set AGENT_API_KEY",
    403: "this key may not use the model",
    404: "check the URL (it ends in /v1) and --model; GET /v1/models lists the names",
    413: "ask a shorter question or show fewer passages",
}


class _FieldRefusedError(Exception):
    """The server does not take a field that can be left out or renamed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class OpenAIPolicy(Policy):
    """A model behind an OpenAI-compatible server.

    Token ids and log-probabilities that the server returns are in `Completion.meta`
    (`prompt_token_ids`, `token_ids`, `logprobs`), not among the completion's own: a conversation
    that the server tokenises anew each turn is not token-exact.

    Args:
        base_url: up to and including `/v1`.
        model: its name there.
        api_key: sent as a bearer token; never logged.
        connect, read: time-outs in seconds; `read` is the longest silence within a reply.
        total: seconds that one completion may take, all attempts together.
        concurrency: requests in flight.
        retry: what is tried again, and how long.
        tokens: `auto` asks for token ids and log-probabilities, `never` does not.

    Raises:
        UsageError: the URL or the key cannot be sent.
    """

    native_tools = True

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: SecretStr | None = None,
        connect: float = 10.0,
        read: float = 120.0,
        total: float = 600.0,
        concurrency: int = 64,
        retry: Retry | None = None,
        tokens: Literal["auto", "never"] = "auto",
    ) -> None:
        self.name = model
        self.version = "remote"
        self._to = endpoint(base_url, "/chat/completions", api_key)
        self.engine = f"server {self._to.shown.removesuffix('/chat/completions')}"
        self._http = client(connect, read)
        self._total = total
        self._gate = asyncio.Semaphore(concurrency)
        self._retry = retry or Retry()
        self._refused = frozenset[str]()
        if tokens == "never":
            self._refused |= {"logprobs", "return_token_ids"}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call, or one failure in it, closes the connections
        of all its requests."""
        return await together(self._one(request) for request in requests)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _one(self, request: Request) -> Completion:
        """One completion within the limits of concurrency and time."""
        async with self._gate:
            try:
                async with asyncio.timeout(self._total):
                    return await self._complete(request)
            except TimeoutError:
                raise PolicyUnavailableError(
                    f"'{self.name}' did not finish its reply within {self._total:g} s",
                    "lower max_tokens, or the number of questions at once",
                ) from None

    async def _complete(self, request: Request) -> Completion:
        """Ask, with fewer fields as long as the server refuses one."""
        refused = self._refused
        while True:
            attempt = partial(self._attempt, request, refused)
            try:
                completion = await persist(attempt, self._retry, self._to.shown)
            except _FieldRefusedError as error:
                refused |= {error.name}
                continue
            if refused - self._refused:
                names = ", ".join(sorted(refused - self._refused))
                log.warning("%s does not take %s: not sent any more", self._to.shown, names)
                self._refused |= refused
            return completion

    async def _attempt(self, request: Request, refused: frozenset[str]) -> Completion:
        """One HTTP request.

        Raises:
            PassingError: it is worth another attempt, and none of its text was handed on.
        """
        reply = Reply(() if request.tools else request.stop, request.on_text)
        body = self._body(request, refused)
        try:
            async with post(self._http, self._to, body) as response:
                if not response.is_success:
                    raise await self._refusal(response, body)
                await read(response, reply)
            return reply.completion()
        except PassingError as error:
            cause = self._to.redacted(str(error))
            if not reply.delivered:
                raise PassingError(cause, error.status, error.after) from None
            raise PolicyUnavailableError(
                f"the reply of '{self.name}' broke off: {cause}",
                "try again; the server's log may say why",
            ) from None
        except PolicyUnavailableError as error:
            raise PolicyUnavailableError(self._to.redacted(error.message), error.hint) from None

    def _body(self, request: Request, refused: frozenset[str]) -> dict[str, Any]:
        sampling = request.sampling
        length = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            length: sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "return_token_ids": True,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if request.tools:  # the server parses the calls itself: a stop string would hide their end
            body["tools"] = list(request.tools)
        elif request.stop:
            body["stop"] = list(request.stop)[:_STOPS]
        return {key: value for key, value in body.items() if key not in refused}

    async def _refusal(self, response: httpx.Response, body: dict[str, Any]) -> Exception:
        """What a reply that is not a success means."""
        text = self._to.redacted((await response.aread()).decode("utf-8", "replace"))
        status = response.status_code
        if status in (400, 403, 422) and (name := _refused_field(text, body)):
            return _FieldRefusedError(name)
        if response.is_redirect:
            return PolicyUnavailableError(
                f"{self._to.shown} redirects (status {status})", "use the URL it leads to"
            )
        return PolicyUnavailableError(
            f"'{self.name}' refused the request: status {status}: {complaint(text)}",
            _HINTS.get(status, "see the server's documentation"),
        )


def _refused_field(text: str, body: dict[str, Any]) -> str | None:
    """The field that a refusal is about, if the request can do without it or under another name."""
    try:
        error = json.loads(text).get("error") or {}
        named = error.get("param") if isinstance(error, dict) else None
    except (ValueError, AttributeError, RecursionError):
        named = None
    if "max_tokens" in body and re.search(r"[Uu]se '?max_completion_tokens", text):
        return "max_tokens"
    present = [name for name in _OPTIONAL if name in body]
    if named in present:
        return str(named)
    return next((name for name in present if re.search(rf"\b{name}\b", text)), None)
