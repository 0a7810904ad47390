"""A session: policy, tools, store and checkpoints opened once, then questions asked one by one.

This is what `agent ask` and the REPL drive. Each question is one episode of a thread; a thread's
checkpoints lie in SQLite, so that it continues after the process is gone, also in mid-episode.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from agent.checkpoints import checkpoints
from agent.episode import Episode
from agent.events import Event
from agent.formats import make_format, system_prompt
from agent.graph import Graph, Setup, build_graph
from agent.policies.base import Policy, Sampling
from agent.policies.registry import policy_of
from agent.rollout import record
from agent.settings import Settings
from agent.store import StoreError, TrajectoryStore
from agent.task import Task
from agent.toolbox import open_tools
from agent.trajectory import (
    Status,
    StopReason,
    Trajectory,
)
from kg.errors import UsageError
from tools.base import Toolbox

log = logging.getLogger(__name__)
Notify = Callable[[str], None]
_STEPS = 10_000  # LangGraph's own limit; ours are the budgets


def make_setup(settings: Settings, policy: Policy, tools: Toolbox) -> Setup:
    """The shared part of every episode run under these settings."""
    name = settings.format or ("tool_call" if policy.template is None else "tags")
    return Setup(
        policy=policy,
        format=make_format(name, tools),
        tools=tools,
        budgets=settings.budgets,
        sampling=Sampling(**settings.sampling.model_dump(), seed=settings.seed),
        rule=settings.rule,
        system=settings.system or system_prompt(),
        tool_seconds=settings.tool_seconds,
        observation_chars=settings.observation_chars,
    )


class Session:
    """An open agent. Use `Session.open` as an async context manager.

    Attributes:
        setup: what its episodes share.
        last: the trajectory of the last question, once its events are exhausted.
        log: whether trajectories go into the store.
    """

    def __init__(
        self, setup: Setup, graph: Graph, store: TrajectoryStore | None, settings: Settings
    ) -> None:
        self.setup = setup
        self.settings = settings
        self.last: Trajectory | None = None
        self._graph = graph
        self._store = store
        self._stack = AsyncExitStack()

    @classmethod
    async def open(
        cls,
        settings: Settings,
        notify: Notify = lambda line: None,
        keep: bool = True,
        parts: tuple[Toolbox, Policy] | None = None,
    ) -> Session:
        """Make a session of policy and tools.

        Args:
            settings: everything else.
            notify: gets one line a stage (download, index build).
            keep: whether trajectories and conversations are stored.
            parts: of `open_parts`; opened here when None.

        Raises:
            TurnwiseError: any part that does not open, each with its own exit code.
        """
        if parts is None:
            parts = await asyncio.to_thread(open_parts, settings, notify)
        tools, policy = parts
        store = await asyncio.to_thread(TrajectoryStore.open, settings.store_url) if keep else None
        stack = AsyncExitStack()
        saver = await stack.enter_async_context(
            checkpoints(settings.threads_path if keep else None)
        )
        session = cls(
            make_setup(settings, policy, tools), build_graph(tools, saver), store, settings
        )
        stack.push_async_callback(policy.aclose)
        if store is not None:
            stack.callback(store.close)
        session._stack = stack
        return session

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(self, question: str, thread: str) -> AsyncGenerator[Event]:
        """Run one question in a thread, yielding its events; `last` is set at the end.

        Closing the iterator (or cancelling the task) stops the episode; what it did is stored.
        """
        self.last = None
        task = Task.ask(question)
        before = await self._state(thread)
        task = replace(task, meta={"thread": thread})
        episode = Episode(
            task,
            seed=self.settings.seed,
            history=_history(before),
            meta={"id": uuid.uuid4().hex, "policy": self.setup.policy_id},
        )
        async with aclosing(self._run({"episode": episode}, thread)) as events:
            async for event in events:
                yield event

    async def resume(self, thread: str) -> AsyncGenerator[Event]:
        """Go on with an episode that was cut off in the middle.

        Raises:
            UsageError: the thread has nothing unfinished, or was begun with another policy.
        """
        before = await self._state(thread)
        if before is None or before.status is not None:
            raise UsageError(f"thread '{thread}' has no unfinished question", "agent trace list")
        begun = before.meta.get("policy", self.setup.policy_id)
        if begun != self.setup.policy_id:
            raise UsageError(
                f"the unfinished question of '{thread}' was begun with {begun}; this is "
                f"{self.setup.policy_id}",
                "go on with that policy (--policy), or ask anew",
            )
        async with aclosing(self._run(None, thread)) as events:
            async for event in events:
                yield event

    async def unfinished(self, thread: str) -> bool:
        """Whether the thread's last episode was cut off."""
        episode = await self._state(thread)
        return episode is not None and episode.status is None

    async def _state(self, thread: str) -> Episode | None:
        snapshot = await self._graph.aget_state({"configurable": {"thread_id": thread}})
        return snapshot.values.get("episode") if snapshot.values else None

    async def _run(self, given: Any, thread: str) -> AsyncGenerator[Event]:
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        self.last = None
        config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": _STEPS}
        stream = self._graph.astream(
            given, config, context=self.setup, stream_mode="custom", durability="sync"
        )
        try:
            async for event in stream:
                yield cast(Event, event)
        except sqlite3.Error as error:
            raise UsageError(
                f"the conversation cannot be saved: {error}",
                "free some space, or set AGENT_HOME to another disk",
            ) from error
        finally:
            await asyncio.shield(self._finish(thread, created))

    async def _finish(self, thread: str, created: str) -> None:
        """Store the episode's trajectory, however it ended."""
        episode = await self._state(thread)
        if episode is None:
            return
        if episode.status is None:
            turns = episode.turns + ((episode.pending,) if episode.pending else ())
            episode = episode.end(Status.FAILED, StopReason.CANCELLED, turns=turns)
        self.last = record(episode, self.setup, created)
        if self._store is not None:
            try:
                # of a question that went on, the record of the cut-off part gives way to the whole
                await asyncio.to_thread(self._store.replace, self.last)
            except StoreError as error:  # the answer is there and must still reach the person
                log.error("the episode was not stored: %s", error.message)


def _history(before: Episode | None) -> tuple[tuple[str, str], ...]:
    """Questions and answers of the thread so far; unanswered ones are left out."""
    if before is None:
        return ()
    if not before.answer:
        return before.history
    return (*before.history, (before.task.question, before.answer))


def open_parts(settings: Settings, notify: Notify = lambda line: None) -> tuple[Toolbox, Policy]:
    """Tools and policy, opened in this thread, so that Ctrl-C stops a download or an index build.

    Raises:
        TurnwiseError: any part that does not open, each with its own exit code.
    """
    return open_tools(settings, notify), policy_of(settings, notify)
