"""How an episode looks on a terminal: the answer on stdout, everything on the way on stderr."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

from rich.console import Console
from rich.text import Text

from agent.console.envelope import envelope, failure
from agent.events import ActionEvent, Event, ObservationEvent, TokenEvent
from agent.trajectory import ActionKind, Status, StopReason, Trajectory
from kg.console import stderr
from kg.errors import TurnwiseError, UsageError
from kg.plain_text import printable
from kg.strict_json import finite

_SHOWN = {
    Status.ABSTAINED: "No answer: the sources do not say.",
    Status.OVER_BUDGET: "No answer within the budget.",
    Status.TRUNCATED: "No answer: the reply was cut off.",
}


class Printer(ABC):
    """Where events and results go."""

    @abstractmethod
    def start(self, thread: str) -> None:
        """A question begins."""

    @abstractmethod
    def event(self, event: Event) -> None:
        """Something happened."""

    @abstractmethod
    def result(self, trajectory: Trajectory, thread: str, digest: str) -> None:
        """The episode is over."""

    @abstractmethod
    def error(self, error: TurnwiseError) -> None:
        """Nothing could be run."""

    def notify(self, line: str) -> None:
        """A stage of set-up, such as a download."""
        stderr(line)


class TextPrinter(Printer):
    """For people. Colours only on a terminal that has them (`NO_COLOR` and `TERM=dumb` respected).

    Args:
        tokens: show the policy's text as it comes.
        quiet: the answer alone.
    """

    def __init__(self, tokens: bool = False, quiet: bool = False) -> None:
        self.tokens = tokens and not quiet
        self.quiet = quiet
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def start(self, thread: str) -> None:
        """Nothing to say yet."""

    def notify(self, line: str) -> None:
        """One dim line."""
        if not self.quiet:
            self.err.print(_text(line, style="dim"))

    def event(self, event: Event) -> None:
        """A line or two for each step."""
        if isinstance(event, TokenEvent) and self.tokens:
            self.err.print(_text(event.text, style="dim"), end="")
        elif isinstance(event, ActionEvent) and not self.quiet:
            self._action(event)
        elif isinstance(event, ObservationEvent) and not self.quiet:
            self._observation(event)

    def result(self, trajectory: Trajectory, thread: str, digest: str) -> None:
        """The answer with its sources."""
        if trajectory.status is Status.FAILED:
            self._failed(trajectory, thread)
            return
        marks = "".join(f"[{number}]" for number in trajectory.citations)
        text = trajectory.answer or _SHOWN[trajectory.status]
        self.out.print(_text(f"{text} {marks}".rstrip(), style="bold"))
        if self.quiet:
            return
        for source in trajectory.sources:
            if source.number in trajectory.citations:
                where = f" ({source.origin.rpartition('/')[2]})" if source.origin else ""
                self.out.print(_text(f"  [{source.number}] {source.title}: {source.id}{where}"))
        if trajectory.stop_reason not in (StopReason.ANSWER, StopReason.ABSTAIN):
            self.err.print(_text(f"stopped by: {trajectory.stop_reason.value}", style="yellow"))
        if thread:
            seen = f"trace {trajectory.id[:8]} · conversation {thread}"
            self.err.print(_text(seen, style="dim"))

    def error(self, error: TurnwiseError) -> None:
        """What was wrong and what to try."""
        self.err.print(_text(f"error: {error.message}", style="red"))
        if error.hint:
            self.err.print(_text(f"  try: {error.hint}"))

    def _failed(self, trajectory: Trajectory, thread: str) -> None:
        cancelled = trajectory.stop_reason is StopReason.CANCELLED
        self.err.print(_text(f"error: {trajectory.error or 'interrupted'}", style="red"))
        if cancelled and thread:
            self.err.print(_text(f"  try: agent ask --resume {thread} goes on"))

    def _action(self, event: ActionEvent) -> None:
        if self.tokens:
            self.err.print()
        action = event.action
        if action.thought:
            self.err.print(_text(f"  think   {action.thought}", style="dim italic"))
        if action.kind is ActionKind.TOOL:
            values = ", ".join(str(value) for value in action.arguments.values())
            self.err.print(_text(f"  {action.name:<7} {values}", style="cyan"))
        elif action.kind is ActionKind.MALFORMED:
            self.err.print(_text(f"  invalid {action.text}", style="yellow"))
        elif action.kind is ActionKind.ABSTAIN:
            self.err.print(_text(f"  abstain {action.text}", style="yellow"))

    def _observation(self, event: ObservationEvent) -> None:
        seen = event.observation
        for source in seen.sources:
            line = _text(f"          [{source.number}] {source.title}", style="dim")
            line.append_text(_text(f"  {' '.join(source.text.split())[:90]}", style="dim"))
            self.err.print(line, soft_wrap=False, overflow="ellipsis", no_wrap=True)
        text = seen.error or ("" if seen.sources else seen.text)
        if text:
            self.err.print(_text(f"          {text}", style="yellow" if seen.error else "dim"))


class JsonPrinter(Printer):
    """One JSON envelope at the end, nothing else on stdout."""

    def start(self, thread: str) -> None:
        """Nothing: the envelope holds the thread."""

    def event(self, event: Event) -> None:
        """Nothing: the envelope holds the steps."""

    def result(self, trajectory: Trajectory, thread: str, digest: str) -> None:
        """The envelope."""
        _line(envelope(trajectory, thread, digest))

    def error(self, error: TurnwiseError) -> None:
        """The envelope of a failure."""
        _line(failure(error))


class StreamPrinter(JsonPrinter):
    """JSON lines: a start line, every event, and the envelope as the last line."""

    def start(self, thread: str) -> None:
        """The first line holds the thread."""
        _line({"type": "start", "thread_id": thread})

    def event(self, event: Event) -> None:
        """One line an event."""
        _line(event.to_dict())

    def result(self, trajectory: Trajectory, thread: str, digest: str) -> None:
        """The last line."""
        _line({"type": "result", **envelope(trajectory, thread, digest)})

    def error(self, error: TurnwiseError) -> None:
        """The last line."""
        _line({"type": "result", **failure(error)})


def make_printer(kind: str, tokens: bool = False, quiet: bool = False) -> Printer:
    """The printer of an output format; see `TextPrinter` for the rest.

    Raises:
        UsageError: there is no such format.
    """
    if kind == "text":
        return TextPrinter(tokens=tokens, quiet=quiet)
    if kind == "json":
        return JsonPrinter()
    if kind == "stream-json":
        return StreamPrinter()
    raise UsageError(f"no output format '{kind}'", "text, json or stream-json")


def _text(text: str, style: str = "") -> Text:
    """Styled text; a document's or a model's control characters do not reach the terminal."""
    return Text(printable(text), style=style)


def _line(value: dict[str, Any]) -> None:
    text = json.dumps(finite(value), ensure_ascii=False)
    # half of a surrogate pair has no bytes
    print(text.encode("utf-8", "replace").decode(), flush=True)
