"""The file of conversations, opened while others use it."""

import asyncio
import sqlite3
import threading
import time

import pytest

from agent.checkpoints import checkpoints
from kg.errors import UsageError


async def test_a_new_file_opens_while_another_process_makes_it(tmp_path):
    """As two Ray actors do that begin together; LangGraph's saver does not wait there."""
    path = tmp_path / "threads.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    async with checkpoints(path) as saver:
        assert [one async for one in saver.alist(None)] == []
    release.join()
    other.close()


async def test_a_file_may_be_opened_by_several_at_once(tmp_path):
    async def opened():
        async with checkpoints(tmp_path / "threads.sqlite") as saver:
            return [one async for one in saver.alist(None)]

    assert await asyncio.gather(*(opened() for _ in range(8))) == [[]] * 8


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    path = tmp_path / "threads.sqlite"
    path.write_text("these are my notes, not a database" * 100)
    with pytest.raises(UsageError, match="does not open: file is not a database"):
        async with checkpoints(path):
            pass


def test_waiting_for_a_locked_file_can_be_interrupted_at_once(tmp_path):
    """The loop's end counts too: it waits for threads, which nothing interrupts."""
    path = tmp_path / "threads.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def opened():
        async with asyncio.timeout(0.3), checkpoints(path):
            pass

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(opened())
    assert time.monotonic() - began < 10
    other.close()
