"""The REPL: questions one after another in one thread.

Ctrl-C stops the running turn (or clears the line), Ctrl-D leaves. A line that ends in a backslash
goes on. An unknown command is told so and never reaches a model.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.console.ask import answer
from agent.console.envelope import usage
from agent.console.printer import Printer
from agent.session import Session
from agent.trajectory import Trajectory
from agent.viewer import render_text
from kg import private_folder
from kg.errors import TurnwiseError, UsageError

HELP = """/help          this list
/tools         the tools and what they do
/trace         the last question, step by step
/usage         tokens, calls and time so far
/save FILE     write this conversation as JSON
/exit          leave (also Ctrl-D)
A line that ends in \\ goes on. Ctrl-C stops a running question."""


class Repl:
    """A conversation with a person."""

    def __init__(self, session: Session, printer: Printer, thread: str) -> None:
        self.session = session
        self.printer = printer
        self.thread = thread
        self.done: list[Trajectory] = []
        self.leaving = False

    async def run(self) -> int:
        """Until the person leaves; exit code 0."""
        self.printer.notify("Ask a question, or /help. Ctrl-D leaves.")
        read = _reader(self.session)
        while not self.leaving:
            try:
                line = await read()
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            if line.strip():
                await self._handle(line.strip())
        self.printer.notify(f"conversation {self.thread}: agent ask --resume {self.thread}")
        return 0

    async def _handle(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                await self._ask(line)
        except TurnwiseError as error:
            self.printer.error(error)
        except Exception as error:  # a conversation outlives what goes wrong in one question
            if os.environ.get("AGENT_DEBUG"):
                raise
            self.printer.error(
                TurnwiseError(f"{type(error).__name__}: {error}", "agent --debug ask")
            )

    async def _ask(self, question: str) -> None:
        task = asyncio.create_task(answer(self.session, question, self.thread, self.printer))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            await task
            if self.session.last is not None:
                self.printer.result(self.session.last, "", self.session.settings.digest)
        except asyncio.CancelledError:
            self.printer.notify("stopped")
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if self.session.last is not None:
                self.done.append(self.session.last)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.printer.notify(HELP),
            "/tools": lambda _: self._tools(),
            "/trace": lambda _: self._trace(),
            "/usage": lambda _: self._usage(),
            "/save": self._save,
            "/exit": lambda _: self._leave(),
        }
        if name not in commands:
            near = difflib.get_close_matches(name, commands, 1)
            raise UsageError(f"no command '{name}'", near[0] if near else "/help")
        commands[name](rest.strip())

    def _tools(self) -> None:
        for tool in self.session.setup.tools:
            self.printer.notify(f"{tool.name:<8} {tool.description}")

    def _trace(self) -> None:
        text = render_text(self.done[-1]) if self.done else "nothing asked yet"
        self.printer.notify(text)

    def _usage(self) -> None:
        counts = [usage(trajectory) for trajectory in self.done]
        total = {key: sum(c[key] for c in counts) for key in (counts[0] if counts else {})}
        seconds = sum(trajectory.seconds for trajectory in self.done)
        parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in total.items()]
        self.printer.notify(", ".join([f"{len(self.done)} questions", *parts, f"{seconds:.1f} s"]))

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file name", "/save conversation.json")
        try:
            text = json.dumps([t.to_dict() for t in self.done], ensure_ascii=False, indent=1)
            Path(name).write_text(text + "\n", "utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {name}: {error.strerror}") from error
        self.printer.notify(f"saved {len(self.done)} questions to {name}")

    def _leave(self) -> None:
        self.leaving = True


def _reader(session: Session) -> Callable[[], Awaitable[str]]:
    """Reads one question, with line editing and a history file."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    folder = session.settings.data_dir
    private_folder.make(folder)
    prompt: PromptSession[str] = PromptSession(history=FileHistory(str(folder / "questions.txt")))

    async def read() -> str:
        lines = [await prompt.prompt_async("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(await prompt.prompt_async(". "))
        return "\n".join(lines)

    return read
