"""Text of documents and models on a terminal."""

import io

from rich.console import Console

from agent.console.printer import TextPrinter
from agent.events import ObservationEvent
from agent.plain_text import printable
from tools.base import Observation, Source


def test_control_characters_go_and_text_stays():
    assert printable("a\x1b[2Jb\x07\x9dc\n\té漢") == "a\ufffd[2Jb\ufffd\ufffdc\n\té漢"


def test_a_documents_escape_sequences_do_not_reach_the_terminal():
    printer = TextPrinter()
    printer.err = Console(file=io.StringIO(), force_terminal=False)
    source = Source("x", "\x1b]0;title\x07", "text \x1b[2J", number=1)
    printer.event(ObservationEvent(0, Observation("search", sources=(source,))))
    printer.event(ObservationEvent(1, Observation("search", error="\x1b[31mred")))
    assert "\x1b" not in printer.err.file.getvalue()
    assert "title" in printer.err.file.getvalue()
