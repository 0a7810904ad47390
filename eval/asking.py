"""One short question to a policy for each of many things, kept as the replies come.

What a judge and an introspection share: requests in one message, so many at once, and replies that a
killed process does not lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from agent.policies.base import Policy, Request, Sampling

_SAVE_EVERY = 20

Advance = Callable[[str, int, int], None]


def request_of(policy: Policy, text: str, sampling: Sampling) -> Request:
    """A request of one user message, in tokens where the policy is token-exact."""
    messages = ({"role": "user", "content": text},)
    ids = tuple(policy.template.opening(messages)) if policy.template is not None else ()
    return Request(messages, ids, sampling)


async def ask_all(
    policy: Policy,
    requests: Mapping[str, Request],
    keep: Callable[[str, str], None],
    save: Callable[[], None],
    concurrency: int,
) -> None:
    """Ask everything and close the policy.

    Args:
        policy: who is asked.
        requests: by a key of the caller's.
        keep: gets key and text of each reply.
        save: called every now and then, and at the end, however that comes.
        concurrency: requests at once.

    Raises:
        PolicyUnavailableError: the policy cannot be reached.
    """
    gate = asyncio.Semaphore(concurrency)
    replies = 0

    async def one(key: str, request: Request) -> None:
        nonlocal replies
        async with gate:
            [done] = await policy.generate([request])
        keep(key, done.text)
        replies += 1
        if replies % _SAVE_EVERY == 0:
            save()

    tasks = [asyncio.create_task(one(key, request)) for key, request in requests.items()]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await policy.aclose()
        save()
