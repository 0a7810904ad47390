"""A reply of Chat Completions while it is put together from its events.

Knows the wire format and nothing of HTTP: server-sent events and plain JSON alike, reasoning under
both its names, tool calls in pieces, stop strings that servers cut off, and token ids where a server
gives them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from agent.http import RETRIED, PassingError, complaint
from agent.policies.base import Completion, FinishReason
from kg.errors import PolicyUnavailableError

_FINISH = {"length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}
_STOPPED_BY = ("stop_reason", "matched_stop")  # vLLM's and SGLang's names


class Reply:
    """Collects events until the reply is whole.

    Args:
        stops: strings that end the reply; what comes behind the first one is dropped.
        on_text: called with each new piece of text.

    Attributes:
        delivered: whether any text was handed on, which nobody can take back.
        stopped: whether a stop string is in the text: nothing more needs to be read.
    """

    def __init__(
        self, stops: Sequence[str] = (), on_text: Callable[[str], None] | None = None
    ) -> None:
        self._stops = tuple(stops)
        self._on_text = on_text
        self._text = ""
        self._reasoning = ""
        self._finish = ""
        self._cut: str | None = None  # stop string that the server cut off; "" when it says none
        self._prompt_ids: list[int] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._calls: list[dict[str, str]] = []
        self._call_at: dict[int, int] = {}
        self._usage: dict[str, Any] = {}
        self.delivered = False
        self.stopped = False

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event.

        Raises:
            PolicyUnavailableError: it does not have the shape of a reply.
        """
        try:
            piece = self._read(event)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PolicyUnavailableError(
                f"the server sent an event of an unknown shape: {str(event)[:80]}",
                "is this an OpenAI-compatible chat completions server?",
            ) from error
        self._hand_on(piece)

    def end(self) -> None:
        """The server said that this is all."""
        self._finish = self._finish or "stop"

    def completion(self) -> Completion:
        """The whole reply.

        Raises:
            PassingError: it ended in the middle.
        """
        if not self._finish:
            raise PassingError("the reply ended without a finish reason")
        if self._finish == "stop" and not self.stopped:
            self._hand_on(self._missing_stop())
        details = self._usage.get("prompt_tokens_details")
        return Completion(
            text=self._text,
            reasoning=self._reasoning,
            finish=_FINISH.get(self._finish, FinishReason.STOP),
            tool_calls=tuple(self._calls),
            prompt_tokens=_count(self._usage, "prompt_tokens"),
            cached_tokens=_count(details, "cached_tokens"),
            reply_tokens=_count(self._usage, "completion_tokens"),
            meta=self._meta(),
        )

    def _meta(self) -> dict[str, Any]:
        """What the server tells of tokens. Log-probabilities may come without ids, not the reverse:
        ids that do not line up with them are of no use."""
        whole = len(self._ids) == len(self._logprobs)
        return {
            "prompt_token_ids": list(self._prompt_ids) if whole else [],
            "token_ids": list(self._ids) if whole else [],
            "logprobs": list(self._logprobs) if whole or not self._ids else [],
            "usage": self._usage,
            "finish_reason": self._finish,
        }

    def _read(self, event: dict[str, Any]) -> str:
        """Everything of an event but its text, which is returned."""
        self._usage = dict(event.get("usage") or self._usage)
        self._prompt_ids += event.get("prompt_token_ids") or []
        pieces = [self._read_choice(choice) for choice in (event.get("choices") or [])[:1]]
        return "".join(pieces)

    def _read_choice(self, choice: dict[str, Any]) -> str:
        delta = choice.get("delta") or choice.get("message") or {}
        self._reasoning += delta.get("reasoning") or delta.get("reasoning_content") or ""
        self._finish = choice.get("finish_reason") or self._finish
        self._prompt_ids += choice.get("prompt_token_ids") or []
        self._ids += choice.get("token_ids") or []
        entries = (choice.get("logprobs") or {}).get("content") or []
        self._logprobs += [float(entry["logprob"]) for entry in entries]
        for key in _STOPPED_BY:
            if key in choice and choice.get("finish_reason") == "stop":
                self._cut = choice[key] if isinstance(choice[key], str) else ""
        for part in delta.get("tool_calls") or []:
            self._read_call(part)
        return str(delta.get("content") or "")

    def _read_call(self, part: dict[str, Any]) -> None:
        """Tool calls come in pieces; `index` tells which call a piece belongs to. Some servers leave
        it out, or give every call the index 0 and tell them apart by id."""
        index, given = part.get("index"), part.get("id") or ""
        at = self._call_at.get(index) if index is not None else None
        if at is None and not given and self._calls and index is None:
            at = len(self._calls) - 1
        if at is None or (given and self._calls[at]["id"] not in ("", given)):
            at = len(self._calls)
            self._calls.append({"id": given or f"call_{at}", "name": "", "arguments": ""})
        if index is not None:
            self._call_at[index] = at
        function, call = part.get("function") or {}, self._calls[at]
        name = function.get("name") or ""
        call["name"] += name if name != call["name"] else ""
        arguments = function.get("arguments") or ""
        call["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def _hand_on(self, piece: str) -> None:
        """Append text up to the end of the first stop string."""
        start = len(self._text)
        self._text += piece
        ends = [
            at + len(stop)
            for stop in self._stops
            if (at := self._text.find(stop, max(0, start - len(stop) + 1))) >= 0
        ]
        if ends:
            self._text, self._finish, self.stopped = self._text[: min(ends)], "stop", True
        piece = self._text[start:]
        if piece and self._on_text:
            self.delivered = True
            self._on_text(piece)

    def _missing_stop(self) -> str:
        """The stop string that the server cut off: what it names, else the end of the open tag."""
        if self._cut is not None and (self._cut == "" or self._cut in self._stops):
            return self._cut
        opened = {
            stop: self._text.rfind("<" + stop[2:]) for stop in self._stops if stop[:2] == "</"
        }
        last = max(opened, key=lambda stop: opened[stop], default="")
        return last if last and opened[last] > self._text.rfind(last) else ""


async def read(response: httpx.Response, reply: Reply) -> None:
    """Fill a reply from a response of any kind; stops as soon as the reply is whole.

    Raises:
        PolicyUnavailableError: an event is not JSON, or the server reports a failure.
        PassingError: the server reports a failure that may pass.
    """
    async with aclosing(_events(response)) as events:
        async for data in events:
            if data.strip() == "[DONE]":
                reply.end()
                return
            reply.add(_parsed(data))
            if reply.stopped:
                return


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The data of each server-sent event, or the whole body where a server does not stream.

    Lines end in a line feed only: JSON may hold U+2028 and the like, which other splitters take for
    the end of a line.
    """
    if response.headers.get("content-type", "").startswith("application/json"):
        yield (await response.aread()).decode("utf-8", "replace")
        return
    rest = b""
    async for block in response.aiter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8", "replace")
    if rest.startswith(b"data:"):
        yield rest[5:].decode("utf-8", "replace")


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PolicyUnavailableError(
            f"the server sent a broken event: {data.strip()[:80]!r}"
        ) from error
    if not isinstance(event, dict) or event.get("error"):
        message = f"the server failed in mid-reply: {complaint(data)}"
        if isinstance(event, dict) and _code(event["error"]) in RETRIED:
            raise PassingError(message, _code(event["error"]))
        raise PolicyUnavailableError(message)
    return event


def _code(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else 0


def _count(usage: Any, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, int | float) else 0
