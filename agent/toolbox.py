"""From settings to tools. A new tool family adds one entry to `_OPENERS`, nothing to the graph."""

from __future__ import annotations

from collections.abc import Callable

from agent.corpus_index import Notify, index_of
from agent.settings import Settings
from kg.errors import UsageError
from tools.base import Tool, Toolbox
from tools.judge import JudgeTool


def open_tools(settings: Settings, notify: Notify = lambda line: None) -> Toolbox:
    """The tools that the settings name, opened.

    Raises:
        UsageError: a tool that does not exist, or a corpus that cannot be read.
        ToolUnavailableError: an index that is broken.
    """
    unknown = [name for name in settings.tools if name not in TOOLS]
    if unknown:
        raise UsageError(f"no tool '{unknown[0]}'", f"there are: {', '.join(TOOLS)}")
    return Toolbox(_OPENERS[name](settings, notify) for name in settings.tools)


def _search(settings: Settings, notify: Notify) -> Tool:
    from tools.search.index import Index
    from tools.search.tool import SearchTool

    search = settings.search
    folder = index_of(settings.corpus, settings.indexes_dir, notify, search.mode)
    return SearchTool(Index.open(folder), search.k, search.passage_chars, search.mode)


_OPENERS: dict[str, Callable[[Settings, Notify], Tool]] = {
    "search": _search,
    "judge": lambda settings, notify: JudgeTool(),
}
#: Names of the tools that there are.
TOOLS = tuple(_OPENERS)
