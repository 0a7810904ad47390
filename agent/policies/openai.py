"""Any OpenAI-compatible server as a policy, by Chat Completions.

Replies are always streamed, so that giving up on one closes the connection and stops the server.
`reasoning` and `reasoning_content` are both read. A server that rejects an optional field is asked
again without it, and not sent it any more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import SecretStr

from agent.http import Retry, client, stream
from agent.policies.base import Completion, FinishReason, Policy, Request
from kg.errors import PolicyUnavailableError

_OPTIONAL = ("return_token_ids", "logprobs", "stream_options", "seed")
_ALWAYS = frozenset({"messages", "model", "stream"})


@dataclass
class _Reply:
    """A streamed reply while it is put together."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)


class OpenAIPolicy(Policy):
    """A model behind an OpenAI-compatible server.

    Args:
        base_url: up to and including `/v1`.
        model: its name there.
        api_key: sent as a bearer token; never logged.
        connect, read: time-outs in seconds; `read` is the longest silence within a reply.
        concurrency: requests in flight.
        retry: what is tried again, and how long.
    """

    native_tools = True

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: SecretStr | None = None,
        connect: float = 10.0,
        read: float = 120.0,
        concurrency: int = 64,
        retry: Retry | None = None,
    ) -> None:
        self.name = model
        self.version = "remote"
        self._url = base_url.rstrip("/") + "/chat/completions"
        headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else None
        self._http = client(connect, read, headers)
        self._gate = asyncio.Semaphore(concurrency)
        self._retry = retry or Retry()
        self._refused: set[str] = set()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Policy.generate`. Cancelling the call closes the connections."""
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _one(self, request: Request) -> Completion:
        async with self._gate:
            while True:
                reply = _Reply()
                refused = await self._ask(request, reply)
                if refused is None:
                    return _completion(request, reply)
                self._refused.add(refused)

    async def _ask(self, request: Request, reply: _Reply) -> str | None:
        """Fill the reply; gives the name of an optional field that the server refuses."""
        body = self._body(request)
        async with stream(self._http, self._url, body, self._retry) as response:
            if response.status_code >= 400:
                return await self._refusal(response, body)
            try:
                async for chunk in _events(response):
                    _receive(reply, chunk, request)
            except httpx.TransportError as error:
                raise PolicyUnavailableError(
                    f"the connection to '{self.name}' broke off in mid-reply: "
                    f"{type(error).__name__}",
                    "try again; the server's log may say why",
                ) from error
        if not reply.finish:
            raise PolicyUnavailableError(
                f"the reply of '{self.name}' ended without a finish reason"
            )
        return None

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "return_token_ids": True,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if request.tools:
            body["tools"] = list(request.tools)
        elif request.stop:
            body["stop"] = list(request.stop)[:4]
        return {key: value for key, value in body.items() if key not in self._refused}

    async def _refusal(self, response: httpx.Response, body: dict[str, Any]) -> str | None:
        """The optional field that a 400 or 422 is about; any other refusal is an error."""
        text = (await response.aread()).decode("utf-8", "replace")
        status = response.status_code
        if status in (400, 422):
            for name in (*_OPTIONAL, *sorted(set(body) - _ALWAYS - set(_OPTIONAL))):
                if name in body and f"{name}" in text and name not in self._refused:
                    return name
        hints = {
            401: "set AGENT_API_KEY",
            403: "this key may not use the model",
            404: "check the URL (it ends in /v1) and --model; GET /v1/models lists the names",
        }
        raise PolicyUnavailableError(
            f"'{self.name}' refused the request: status {status}: {_message(text)}",
            hints.get(status, "see the server's documentation"),
        )


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event until `[DONE]`.

    Raises:
        PolicyUnavailableError: a line is not JSON, or the server reports an error in the stream.
    """
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise PolicyUnavailableError(
                f"the server sent a broken event: {data[:80]!r}"
            ) from error
        if not isinstance(event, dict) or event.get("error"):
            raise PolicyUnavailableError(f"the server failed in mid-reply: {_message(data)}")
        yield event


def _receive(reply: _Reply, event: dict[str, Any], request: Request) -> None:
    """Add one event to the reply."""
    reply.usage = event.get("usage") or reply.usage
    for choice in (event.get("choices") or [])[:1]:
        delta = choice.get("delta") or choice.get("message") or {}
        piece = delta.get("content") or ""
        reply.text += piece
        reply.reasoning += delta.get("reasoning") or delta.get("reasoning_content") or ""
        reply.finish = choice.get("finish_reason") or reply.finish
        reply.token_ids += choice.get("token_ids") or []
        entries = (choice.get("logprobs") or {}).get("content") or []
        reply.logprobs += [float(entry["logprob"]) for entry in entries]
        for part in delta.get("tool_calls") or []:
            _receive_call(reply, part)
        if piece and request.on_text:
            request.on_text(piece)


def _receive_call(reply: _Reply, part: dict[str, Any]) -> None:
    """Tool calls come in pieces; `index` tells which call a piece belongs to."""
    index = part.get("index", len(reply.calls))
    call = reply.calls.setdefault(index, {"id": f"call_{index}", "name": "", "arguments": ""})
    function = part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    call["name"] += function.get("name") or ""
    call["arguments"] += function.get("arguments") or ""


def _completion(request: Request, reply: _Reply) -> Completion:
    ids, logprobs = tuple(reply.token_ids), tuple(reply.logprobs)
    if len(ids) != len(logprobs):  # half of the truth is of no use to anybody
        ids, logprobs = (), ()
    text = reply.text if reply.finish != "stop" else _closed(reply.text, request.stop)
    calls = tuple(call for _, call in sorted(reply.calls.items()))
    by_name = {"length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}
    return Completion(
        text=text,
        reasoning=reply.reasoning,
        finish=by_name.get(reply.finish, FinishReason.STOP),
        tool_calls=calls,
        prompt_tokens=int(reply.usage.get("prompt_tokens") or 0),
        meta={"token_ids": list(ids), "logprobs": list(logprobs), "usage": reply.usage},
    )


def _closed(text: str, stops: Sequence[str]) -> str:
    """Servers cut the stop string off: put back the closing tag of the tag left open."""
    for stop in stops:
        opening = stop.replace("</", "<", 1)
        if text.count(opening) > text.count(stop):
            return text + stop
    return text


def _message(text: str) -> str:
    """The server's own words for an error, one line."""
    try:
        error = json.loads(text).get("error")
        text = error.get("message", text) if isinstance(error, dict) else str(error or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]
