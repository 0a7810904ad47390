"""All HTTP of the project goes through here: one client, one rule for what is tried again.

Tried again: connection errors, 408, 409, 429 and 5xx, with `Retry-After` where the server gives it,
else exponential back-off with jitter, under a limit of attempts and a total deadline.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from kg.errors import PolicyUnavailableError

RETRIED = frozenset({408, 409, 429, *range(500, 600)})
USER_AGENT = "turnwise"


@dataclass(frozen=True)
class Retry:
    """When to give up.

    Attributes:
        attempts: requests in all.
        deadline: seconds from the first attempt in which another may start.
        base, most: bounds of the wait before an attempt, seconds.
    """

    attempts: int = 5
    deadline: float = 120.0
    base: float = 0.5
    most: float = 30.0

    def wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds to wait before attempt number `attempt` (the first retry is 1)."""
        asked = _retry_after(response) if response is not None else None
        if asked is not None:
            return asked
        grown = min(self.most, self.base * 2.0 ** (attempt - 1))
        return grown * random.uniform(0.5, 1.0)


def client(connect: float, read: float, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """An HTTP client with time-outs in seconds; redirects are not followed."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(read, connect=connect),
        headers={"User-Agent": USER_AGENT, **(headers or {})},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )


@asynccontextmanager
async def stream(
    http: httpx.AsyncClient, url: str, body: object, retry: Retry
) -> AsyncIterator[httpx.Response]:
    """POST JSON and stream the reply; the status is below 400 or not one that is tried again.

    Raises:
        PolicyUnavailableError: no answer within the limits of `retry`.
    """
    began, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        response, cause = None, ""
        try:
            response = await http.send(http.build_request("POST", url, json=body), stream=True)
            if response.status_code not in RETRIED:
                break
            cause = f"status {response.status_code}"
            await response.aclose()
        except httpx.TransportError as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
        wait = retry.wait(attempt, response)
        late = time.monotonic() - began + wait > retry.deadline
        if attempt >= retry.attempts or late:
            raise PolicyUnavailableError(
                f"{_shown(url)} did not answer after {attempt} attempts: {cause}",
                "is the server running, and is the URL right?",
            )
        await asyncio.sleep(wait)
    try:
        yield response
    finally:
        await response.aclose()


def _retry_after(response: httpx.Response) -> float | None:
    """`Retry-After` in seconds, from its number or its date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _shown(url: str) -> str:
    """The URL without user, password and query."""
    parts = httpx.URL(url)
    return str(parts.copy_with(username=None, password=None, query=None))
