"""Queries that come while the index is busy are answered together.

One query through the encoder costs nearly as much as ten: while one batch is being searched the next
queries gather, and go as one. A single query never waits for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Calls `answer` in a thread with all that waits, one call at a time in each event loop.

    Args:
        answer: gives one answer a question, in their order; safe to call from several threads.
        most: questions a call.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], most: int = 64) -> None:
        self._answer = answer
        self._most = most
        self._waiting: WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[tuple[Q, asyncio.Future[A]]]
        ] = WeakKeyDictionary()
        self._workers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            WeakKeyDictionary()
        )

    async def ask(self, question: Q) -> A:
        """The answer to one question; raises what `answer` raised for its batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        waiting = self._waiting.setdefault(loop, [])
        waiting.append((question, future))
        worker = self._workers.get(loop)
        if worker is None or worker.done():
            self._workers[loop] = loop.create_task(self._work(waiting))
        return await future

    async def _work(self, waiting: list[tuple[Q, asyncio.Future[A]]]) -> None:
        while waiting:
            batch = waiting[: self._most]
            del waiting[: self._most]
            batch = [(question, future) for question, future in batch if not future.done()]
            if batch:
                await self._settle(batch)

    async def _settle(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        """Answer a batch; whoever gave up meanwhile is passed over."""
        questions, futures = zip(*batch, strict=True)
        try:
            answers = await asyncio.to_thread(self._answer, questions)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, answer in zip(futures, answers, strict=True):
            if not future.done():
                future.set_result(answer)
