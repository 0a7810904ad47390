"""The tools of a finished episode, with its recorded calls before them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.replay import takes
from agent.settings import Settings
from agent.toolbox import open_tools
from agent.trajectory import Trajectory
from kg.errors import TurnwiseError
from tools.base import Tool, Toolbox
from tools.cassette import AbsentTool, CassetteTool, Take
from tools.judge import JudgeTool

Notify = Callable[[str], None]


def open_cassette(
    done: Trajectory,
    settings: Settings,
    live: Collection[str] | None = None,
    own: bool = False,
    notify: Notify = lambda line: None,
) -> tuple[Toolbox, list[str]]:
    """The tools that an episode had, each with its recorded calls before it.

    A tool itself is asked for other calls only where its data is the episode's own, by its version,
    or where it was asked for by name or with other data.

    Args:
        done: the episode.
        settings: corpus and search options of the tools.
        live: names of the tools that may be asked; all whose data is the episode's own when None.
        own: whether the corpus was chosen for this, so that other data is what is wanted.
        notify: gets one line a stage (index build).

    Returns:
        The tools, and a line for each that answers otherwise than it did in the episode.

    Raises:
        TurnwiseError: a tool that was asked for does not open.
    """
    recorded = takes(done)
    tools, notes = [], []
    for name in done.tools or settings.tools:
        wanted = own if live is None else name in live
        closed = live is not None and not wanted
        tool, note = _open(
            name, settings, recorded, done.versions.get(name, ""), wanted, closed, notify
        )
        tools.append(tool)
        notes += [note] if note else []
    return Toolbox(tools), notes


def _open(
    name: str,
    settings: Settings,
    recorded: tuple[Take, ...],
    version: str,
    wanted: bool,
    closed: bool,
    notify: Notify,
) -> tuple[Tool, str]:
    """One tool with its recording, and what is to be said of it."""
    only = "calls that are not on the cassette end as errors"
    absent = CassetteTool(AbsentTool(name, recorded, version), recorded, live=False)
    alone = settings.model_copy(update={"tools": (name,)})
    if closed and name != JudgeTool.name:  # a verdict needs no data
        return absent, ""
    try:
        tool = open_tools(alone, notify)[name]
    except TurnwiseError as error:
        if wanted:
            raise
        return absent, f"{name} is not available ({error.message}): {only}"
    if not tool.counts:
        return tool, ""
    if version in ("", tool.version):
        return CassetteTool(tool, recorded), ""
    if wanted:
        return CassetteTool(tool, recorded), f"{name} has other data than in the episode"
    note = f"{name} has other data than in the episode: {only}"
    return CassetteTool(tool, recorded, live=False), note
