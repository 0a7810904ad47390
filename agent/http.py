"""All HTTP of the project goes through here: one client, one rule for what is tried again.

Tried again: connection errors, 408, 409, 429 and 5xx, with `Retry-After` where the server gives it,
else exponential back-off with jitter, under a limit of attempts and a total deadline. Neither keys
nor passwords ever reach a log line or an error.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from kg.errors import PolicyUnavailableError, UsageError

RETRIED = frozenset({408, 409, 429, *range(500, 600)})
USER_AGENT = "turnwise"
_HINTS = {429: "the server limits the rate: wait, or ask fewer questions at once"}

T = TypeVar("T")


class PassingError(Exception):
    """A failure that may pass: another attempt is worth it.

    Args:
        cause: what happened, one line.
        status: of the reply, 0 when there was none.
        after: seconds that the server asks to wait; None when it does not say.
    """

    def __init__(self, cause: str, status: int = 0, after: float | None = None) -> None:
        super().__init__(cause)
        self.status = status
        self.after = after


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

    def wait(self, attempt: int, after: float | None) -> float:
        """Seconds to wait after attempt number `attempt` (from 1); the server's wish comes first."""
        if after is not None:
            return after
        grown = min(self.most, self.base * 2.0 ** (attempt - 1))
        return grown * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how they are signed.

    Attributes:
        url: without user, password or fragment.
        headers: carries the key; not part of the repr.
        secrets: key or password, and what stands for them in the headers; not part of it either.
    """

    url: httpx.URL
    headers: httpx.Headers
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Endpoint({self.shown})"

    @property
    def shown(self) -> str:
        """The URL as messages show it: without its query, which may carry a key."""
        return str(self.url.copy_with(query=None))

    def redacted(self, text: str) -> str:
        """What a server says, without the secrets: servers echo them in their complaints. It comes
        before the text is cut, for a part of a key is not found any more."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def endpoint(base: str, path: str, api_key: SecretStr | None = None) -> Endpoint:
    """The address `base` + `path`; user and password in `base` become basic authentication.

    Raises:
        UsageError: the URL or the key cannot be sent.
    """
    try:
        url = httpx.URL(base.strip())
        host = url.host  # decoded only here
    except (httpx.InvalidURL, UnicodeError):
        # what the error says is left out: it may be a part of a password with a / in it
        raise UsageError(
            "the server's URL is not valid",
            "https://HOST:PORT/PATH; a / or @ in a password is written %2F or %40",
        ) from None
    if url.scheme not in ("http", "https") or not host:
        raise UsageError("the server's URL needs http:// or https:// and a host")
    headers = httpx.Headers({"User-Agent": USER_AGENT})
    secrets: tuple[str, ...] = ()
    key = api_key.get_secret_value().strip() if api_key else ""
    if key:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                "the API key has characters that no HTTP header can carry", "check AGENT_API_KEY"
            )
        headers["Authorization"], secrets = f"Bearer {key}", (key,)
    elif url.userinfo:
        basic = httpx.BasicAuth(url.username, url.password)
        made = next(basic.auth_flow(httpx.Request("GET", url))).headers["Authorization"]
        headers["Authorization"] = made
        secrets = tuple(part for part in (url.password, made.partition(" ")[2]) if part)
    full = url.path.rstrip("/") + path
    return Endpoint(url.copy_with(userinfo=b"", path=full, fragment=None), headers, secrets)


def client(connect: float, read: float) -> httpx.AsyncClient:
    """An HTTP client with time-outs in seconds; redirects are not followed."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(read, connect=connect),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )


@asynccontextmanager
async def post(
    http: httpx.AsyncClient, to: Endpoint, body: dict[str, Any]
) -> AsyncIterator[httpx.Response]:
    """POST JSON once and stream the reply; leaving the block early closes the connection.

    Raises:
        PassingError: no connection, one that broke (also while the reply is read in the block), or
            a status that is tried again.
    """
    headers = {**to.headers, "Content-Type": "application/json"}
    content = json.dumps(body).encode()  # ASCII, so that half of a surrogate pair does no harm
    try:
        async with http.stream("POST", to.url, content=content, headers=headers) as response:
            if response.status_code in RETRIED:
                text = complaint(to.redacted((await response.aread()).decode("utf-8", "replace")))
                cause = f"status {response.status_code}: {text}".rstrip(": ")
                raise PassingError(cause, response.status_code, _retry_after(response))
            yield response
    except httpx.RequestError as error:
        raise PassingError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


async def persist(attempt: Callable[[], Awaitable[T]], retry: Retry, what: str) -> T:
    """Make attempts until one does not end in a `PassingError`.

    Args:
        attempt: makes one.
        retry: when to give up.
        what: is asked, for the error message.

    Raises:
        PolicyUnavailableError: the limits of `retry` are spent.
    """
    began, count = time.monotonic(), 0
    while True:
        count += 1
        try:
            return await attempt()
        except PassingError as error:
            wait = retry.wait(count, error.after)
            late = time.monotonic() - began + wait > retry.deadline
            if count >= retry.attempts or late:
                times = f"{count} attempt{'s' * (count > 1)}"
                raise PolicyUnavailableError(
                    f"{what} did not answer after {times}: {error}",
                    _HINTS.get(error.status, "is the server running, and is the URL right?"),
                ) from error
        await asyncio.sleep(wait)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all give, in order. Where one fails, or the caller is cancelled, the others are cancelled
    too, and have ended when this returns."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def complaint(text: str) -> str:
    """A server's own words for an error: one line of at most 200 characters."""
    try:
        error = json.loads(text).get("error")
        text = error.get("message", text) if isinstance(error, dict) else str(error or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(str(text).split())[:200]


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
    except (ValueError, OverflowError):
        return None
