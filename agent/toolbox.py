"""From settings to tools. A new tool family adds one entry to `_OPENERS`, nothing to the graph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.settings import Settings
from kg.errors import UsageError
from tools.base import Tool, Toolbox
from tools.judge import JudgeTool

if TYPE_CHECKING:
    from tools.search.index import Mode

Notify = Callable[[str], None]
_PROBLEMS_SHOWN = 5
_LEXICAL = "-lexical"  # an index without vectors


def open_tools(settings: Settings, notify: Notify = lambda line: None) -> Toolbox:
    """The tools that the settings name, opened.

    Raises:
        UsageError: a tool that does not exist, or a corpus that cannot be read.
        ToolUnavailableError: an index that is broken.
    """
    unknown = [name for name in settings.tools if name not in _OPENERS]
    if unknown:
        raise UsageError(f"no tool '{unknown[0]}'", f"there are: {', '.join(_OPENERS)}")
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


def index_of(
    corpus: tuple[Path, ...],
    indexes: Path,
    notify: Notify = lambda line: None,
    mode: Mode = "hybrid",
) -> Path:
    """The index folder of a corpus, built on first use and again when a file changed.

    Args:
        corpus: files and folders, or one folder that is an index already; empty for the bundled
            library.
        indexes: where built indexes lie.
        notify: told when an index is being built.
        mode: of the searches; lexical ones need no vectors, which take nearly all of the time.

    Raises:
        UsageError: a path that does not exist or holds no readable passage.
    """
    corpus = corpus or (_library(indexes),)
    found = find_index(corpus, indexes, mode)
    if found is not None:
        return found
    from tools.search.build import build_index
    from tools.search.settings import IndexSettings

    lexical = mode == "lexical"
    folder = indexes / (_fingerprint(corpus) + (_LEXICAL if lexical else ""))
    notify(f"indexing {', '.join(path.name for path in corpus)} (once)")
    report = build_index(corpus, folder, IndexSettings(dense="none" if lexical else "auto"))
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        notify(f"skipped: {problem}")
    notify(f"{report.passages:,} passages indexed, {report.skipped} rows skipped")
    return folder


def find_index(corpus: tuple[Path, ...], indexes: Path, mode: Mode = "hybrid") -> Path | None:
    """The index folder of a corpus if it is built, of these files and good for such searches; None
    when it is not.

    Raises:
        UsageError: a path that does not exist.
    """
    corpus = corpus or (_library(indexes),)
    missing = [path for path in corpus if not path.exists()]
    if missing:
        raise UsageError(f"the corpus {missing[0]} does not exist", "check --corpus")
    from tools.search.manifest import is_index

    if len(corpus) == 1 and is_index(corpus[0]):
        return corpus[0]
    names = [_fingerprint(corpus)]
    names += [names[0] + _LEXICAL] if mode == "lexical" else []
    return next((indexes / name for name in names if is_index(indexes / name)), None)


def _library(indexes: Path) -> Path:
    """The bundled library's passages as a corpus file."""
    from kg.library.passages import write_corpus

    path = indexes / "library.jsonl"
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_corpus(partial)
        if not path.is_file() or path.read_bytes() != partial.read_bytes():
            os.replace(partial, path)
        else:
            partial.unlink()
    except OSError as error:
        raise UsageError(
            f"indexes cannot be kept in {indexes}: {error.strerror or error}",
            "set AGENT_HOME to a folder with room that you may write to",
        ) from error
    return path


def _fingerprint(corpus: tuple[Path, ...]) -> str:
    """Changes when a file of the corpus is added, removed or written, and with the index format."""
    from tools.search.manifest import FORMAT_VERSION

    digest = hashlib.sha256(f"{FORMAT_VERSION}\n".encode())
    for path in corpus:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (f for f in files if f.is_file()):
            stat = file.stat()
            digest.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
