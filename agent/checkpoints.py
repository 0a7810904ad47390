"""LangGraph's checkpoints of episodes in SQLite; only our own records and plain values are loaded."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

from agent.episode import Episode
from agent.store.write_ahead import BUSY_SECONDS, PAUSE, attempts
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Turn
from kg import private_folder
from kg.errors import UsageError
from tools.base import Observation, Source, Verdict

_RECORDS = (
    *(Episode, Task, Turn, Action, ActionKind, Span, Status, StopReason),
    *(Observation, Source, Verdict),
)


@asynccontextmanager
async def checkpoints(path: Path | None) -> AsyncIterator[Any]:
    """A saver to compile a graph with, open for as long as the context lasts.

    Args:
        path: its file, made when it is not there; None keeps everything in memory.

    Raises:
        UsageError: the file cannot be opened or made.
    """
    import aiosqlite
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    strict = JsonPlusSerializer(
        allowed_msgpack_modules=[(kind.__module__, kind.__qualname__) for kind in _RECORDS]
    )
    if path is None:
        yield InMemorySaver(serde=strict)
        return
    async with AsyncExitStack() as stack:
        try:
            private_folder.make(path.parent)
            await _prepare(path)
            connection = aiosqlite.connect(path, timeout=BUSY_SECONDS)
            saver = AsyncSqliteSaver(await stack.enter_async_context(connection), serde=strict)
            await saver.setup()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"the conversation file {path} does not open: {error}",
                "move it away, or set AGENT_HOME to another folder",
            ) from error
        yield saver


async def _prepare(path: Path) -> None:
    """As the saver wants it, which does not wait for another process that makes the file too; Ctrl-C
    does not wait for that process either."""
    with closing(sqlite3.connect(path, timeout=0)) as file:
        for _ in attempts(file):
            await asyncio.sleep(PAUSE)
