"""`agent ask`: one question, or a conversation."""

from __future__ import annotations

import asyncio
import codecs
import sys
import uuid
from contextlib import aclosing
from dataclasses import dataclass

from agent.console.envelope import INTERRUPTED, exit_code
from agent.console.printer import Printer
from agent.policies.base import Policy
from agent.session import Session, open_parts
from agent.settings import Settings
from agent.store import TrajectoryStore
from agent.task import MAX_QUESTION_CHARS, Task
from agent.threads import Threads
from kg.errors import TurnwiseError, UsageError
from tools.base import Toolbox


class InterruptedRunError(TurnwiseError):
    """Ctrl-C before the answer: exit code 130."""

    exit_code = INTERRUPTED


_STDIN_LIMIT = 4 * MAX_QUESTION_CHARS + 1


@dataclass(frozen=True)
class Ask:
    """What the command was given besides settings.

    Attributes:
        question: None opens the REPL, or goes on with an unfinished question of `thread`.
        thread: conversation to continue, or an episode of it (the beginning of its id is enough);
            `latest` for the last one; empty for a new one.
        keep: whether to store the trajectory and the conversation.
    """

    question: str | None
    thread: str = ""
    keep: bool = True
    fail_on_abstain: bool = False


def read_question(argument: str | None, resuming: bool = False) -> str | None:
    """The question from the argument or from standard input; None when a person sits there.

    Args:
        argument: `-` reads standard input, as None does where it is a pipe.
        resuming: an empty pipe asks nothing new, so that the unfinished question goes on.

    Raises:
        UsageError: standard input is not text.
    """
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        return None
    piped = _read_stdin()
    return None if argument is None and resuming and not piped.strip() else piped


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(_STDIN_LIMIT)
    try:  # what lies beyond the limit may have cut a character; the question is too long then anyway
        return codecs.getincrementaldecoder("utf-8")().decode(data, len(data) < _STDIN_LIMIT)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 text (byte {error.start})", "pass the question as text"
        ) from error


def run(ask: Ask, settings: Settings, printer: Printer) -> int:
    """Run the command to its exit code. What can be wrong with the question, the store or the
    conversation is told before a model is loaded.

    Raises:
        TurnwiseError: nothing could be run.
    """
    if ask.question is not None:
        Task.ask(ask.question)
    if ask.keep:
        TrajectoryStore.open(settings.store_url).close()
    thread = _thread(ask.thread, settings) if ask.thread else uuid.uuid4().hex[:12]
    try:
        parts = open_parts(settings, printer.notify)
        return asyncio.run(_run(ask, thread, settings, printer, parts))
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted") from None


async def _run(
    ask: Ask, thread: str, settings: Settings, printer: Printer, parts: tuple[Toolbox, Policy]
) -> int:
    async with await Session.open(settings, printer.notify, ask.keep, parts) as session:
        if ask.question is None and not await session.unfinished(thread):
            from agent.console.repl import Repl

            if not sys.stdin.isatty():
                raise UsageError(
                    f"conversation '{thread}' has no unfinished question, and none was asked"
                )
            return await Repl(session, printer, thread).run()
        try:
            await answer(session, ask.question, thread, printer)
        except asyncio.CancelledError:  # Ctrl-C: what was done is stored, and told
            if session.last is None:
                raise
            printer.result(session.last, thread if ask.keep else "", settings.digest)
            return INTERRUPTED
        assert session.last is not None
        printer.result(session.last, thread if ask.keep else "", settings.digest)
        return exit_code(session.last, ask.fail_on_abstain)


async def answer(session: Session, question: str | None, thread: str, printer: Printer) -> None:
    """Run one question, or the thread's unfinished one; its events go to the printer, its trajectory
    to `session.last`."""
    printer.start(thread)
    events = session.resume(thread) if question is None else session.ask(question, thread)
    async with aclosing(events):  # a reader that goes away must not cost the episode its record
        async for event in events:
            printer.event(event)
    current = asyncio.current_task()
    if current is not None and current.cancelling():  # Ctrl-C in the very last moment
        raise asyncio.CancelledError


def _thread(given: str, settings: Settings) -> str:
    """The conversation that is meant.

    Raises:
        UsageError: there is none.
    """
    threads = Threads(settings.threads_path)
    if given == "latest":
        latest = threads.latest()
        if latest is None:
            raise UsageError("there is no conversation to continue", 'agent ask "your question"')
        return latest
    if threads.has(given):
        return given
    try:
        with TrajectoryStore.open(settings.store_url) as store:
            thread = str(store.get(given).task.meta.get("thread", ""))
    except TurnwiseError:
        thread = ""
    if thread and threads.has(thread):
        return thread
    raise UsageError(
        f"no conversation '{given}'",
        "agent trace list shows past episodes; --resume takes their ids",
    )
