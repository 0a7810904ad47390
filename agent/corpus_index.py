"""The index of a corpus: built on first use, found again as long as its files hold the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kg.errors import UsageError

if TYPE_CHECKING:
    from tools.search.index import Mode

Notify = Callable[[str], None]
_PROBLEMS_SHOWN = 5
_LEXICAL = "-lexical"  # an index without vectors
_NOTE = ".corpus"  # what the files held when they were last looked into


def index_of(
    corpus: tuple[Path, ...],
    indexes: Path,
    notify: Notify = lambda line: None,
    mode: Mode = "hybrid",
) -> Path:
    """The index folder of a corpus, built on first use and again when a file holds something else.

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
    folder = indexes / (_fingerprint(corpus, indexes) + (_LEXICAL if lexical else ""))
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
    names = [_fingerprint(corpus, indexes)]
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


def _fingerprint(corpus: tuple[Path, ...], indexes: Path) -> str:
    """Of the names and bytes of a corpus's files, and of the index format. The bytes are read only where
    a file is new or was written: a copy put in place of a file is the same corpus.
    """
    from tools.search.manifest import FORMAT_VERSION, hash_file

    version = f"{FORMAT_VERSION}\n"
    files = list(_files(corpus))
    stamps = (f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for file, stat in files)
    note = indexes / (_digest(version, *stamps) + _NOTE)
    with contextlib.suppress(OSError):
        return note.read_text("ascii")
    found = _digest(version, *(f"{file}\0{hash_file(file)}\n" for file, _ in files))
    partial = note.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):  # a home that cannot be written to: the bytes are read again
        indexes.mkdir(parents=True, exist_ok=True)
        partial.write_text(found, "ascii")
        os.replace(partial, note)
    return found


def _files(corpus: tuple[Path, ...]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in corpus:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield file.resolve(), file.stat()


def _digest(*lines: str) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
