"""Queries that wait together are answered together, each with its own answer."""

import asyncio
import threading
import time

import pytest

from tools.search.batching import Batcher


def test_what_waits_goes_as_one_batch_and_gets_its_own_answer():
    sizes, busy = [], threading.Lock()

    def answer(questions):
        assert busy.acquire(blocking=False), "two batches at once"
        sizes.append(len(questions))
        time.sleep(0.02)
        busy.release()
        return [question * 2 for question in questions]

    async def main():
        batcher = Batcher(answer, most=40)
        found = await asyncio.gather(*(batcher.ask(number) for number in range(100)))
        assert found == [2 * number for number in range(100)]
        assert await batcher.ask(7) == 14  # the worker has ended and begins anew

    asyncio.run(main())
    assert sum(sizes) == 101
    assert max(sizes) == 40
    assert len(sizes) <= 5


def test_a_failed_batch_fails_its_questions_alone():
    def answer(questions):
        if "bad" in questions:
            raise ValueError("no")
        return list(questions)

    async def main():
        batcher = Batcher(answer, most=1)
        results = await asyncio.gather(
            *(batcher.ask(q) for q in ("a", "bad", "c")), return_exceptions=True
        )
        assert results[0] == "a"
        assert isinstance(results[1], ValueError)
        assert results[2] == "c"

    asyncio.run(main())


def test_giving_up_on_one_question_costs_the_others_nothing():
    gate = threading.Event()

    def answer(questions):
        gate.wait(10)
        return list(questions)

    async def main():
        batcher = Batcher(answer)
        first = asyncio.create_task(batcher.ask("first"))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.ask("second"), 0.05)
        third = asyncio.create_task(batcher.ask("third"))
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(first, third) == ["first", "third"]

    asyncio.run(main())


def test_several_event_loops_may_use_one_batcher():
    batcher = Batcher(list)
    found = []

    def run(number):
        found.append(asyncio.run(batcher.ask(number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == list(range(8))
