"""Text of documents and models on a terminal."""

import io
import json
import math

from rich.console import Console

from agent.cli import _summaries
from agent.console.printer import StreamPrinter, TextPrinter
from agent.events import ObservationEvent, TokenEvent
from agent.store import Summary
from tools.base import Observation, Source


def test_a_documents_escape_sequences_do_not_reach_the_terminal():
    printer = TextPrinter()
    printer.err = Console(file=io.StringIO(), force_terminal=False)
    source = Source("x", "\x1b]0;title\x07", "text \x1b[2J", number=1)
    printer.event(ObservationEvent(0, Observation("search", sources=(source,))))
    printer.event(ObservationEvent(1, Observation("search", error="\x1b[31mred")))
    assert "\x1b" not in printer.err.file.getvalue()
    assert "title" in printer.err.file.getvalue()


def test_neither_do_those_of_an_answer_in_the_list_of_episodes(capsys):
    answer = "\x1b]0;title\x07\x1b[31mred"
    _summaries(
        [Summary("a" * 32, "2026", "t", "p", "answered", "answer", None, "q", answer)], False
    )
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "red" in shown


def test_an_event_line_is_json_whatever_was_written(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", out)
    StreamPrinter().event(TokenEvent(0, "é \ud83d"))
    StreamPrinter().event(ObservationEvent(0, Observation("search", seconds=math.nan)))
    first, second = map(json.loads, out.buffer.getvalue().decode().splitlines())
    assert first["text"] == "é ?"
    assert second["seconds"] is None
