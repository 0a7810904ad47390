"""Reads corpora: JSONL(.gz), Markdown, plain text, HTML and PDF files, and folders of them.

A bad row or file becomes a `Problem` with its place and is skipped; reading goes on. Reading order
is the order of the paths given, folders sorted, so that two runs see the same documents.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kg.errors import MissingExtraError, UsageError
from tools.search.markup import read_html, read_markdown
from tools.search.passages import Document, Section

_JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_MARKDOWN = (".md", ".markdown")
_TEXT = (".txt", ".text")
_HTML = (".html", ".htm", ".xhtml")
_PDF = (".pdf",)
KNOWN_SUFFIXES = (*_JSONL, *_MARKDOWN, *_TEXT, *_HTML, *_PDF)


@dataclass(frozen=True, slots=True)
class Problem:
    """A row or file that was skipped: `where` is `file` or `file:line`."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


OnProblem = Callable[[Problem], None]


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file to read.

    Attributes:
        path: where it is.
        name: begins the ids of its documents: the path from the folder that was given, that folder's
            own name included; longer when another file of the index has that name.
    """

    path: Path
    name: str


# pypdf lets the damage of a file surface as any of these
_DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError),
    *(NotImplementedError, ZeroDivisionError, OverflowError),
)


class _SkipFileError(Exception):
    """The file cannot be read as what its suffix says."""


def list_files(
    paths: Sequence[Path | str], on_problem: OnProblem, known: Mapping[str, str] | None = None
) -> list[CorpusFile]:
    """The files under `paths`, folders walked in sorted order, hidden ones left out.

    Args:
        paths: files and folders.
        on_problem: gets what cannot be indexed.
        known: names of files that are in the index already, by absolute path: such a file keeps its
            name, and another file gets another one while the first still exists.

    Raises:
        UsageError: a path does not exist, or none was given.
    """
    if not paths:
        raise UsageError("no corpus was given", "name at least one file or folder to index")
    files: list[CorpusFile] = []
    for path in map(Path, paths):
        if path.is_dir():
            files.extend(_walk(path, on_problem))
        elif path.is_file():
            files.append(CorpusFile(path, path.name))
        else:
            raise UsageError(f"{path}: no such file or folder", "check the path of the corpus")
    return _named(files, known or {})


def _named(files: Sequence[CorpusFile], known: Mapping[str, str]) -> list[CorpusFile]:
    """Each file once, by a name of its own; one that is taken grows by the folders above the file."""
    taken = {name: path for path, name in known.items() if Path(path).is_file()}
    out: dict[Path, CorpusFile] = {}
    for file in files:
        path = file.path.resolve()
        if path in out:
            continue
        name = known.get(str(path), file.name)
        above = path.parts[: -len(Path(file.name).parts)]
        while taken.get(name, str(path)) != str(path) and above:
            name, above = f"{above[-1].strip('/')}/{name}", above[:-1]
        taken[name] = str(path)
        out[path] = CorpusFile(file.path, name)
    return list(out.values())


def _walk(folder: Path, on_problem: OnProblem) -> Iterator[CorpusFile]:
    root = folder.resolve()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        if path.name.lower().endswith(KNOWN_SUFFIXES):
            yield CorpusFile(path, f"{root.name}/{inside.as_posix()}")
        else:
            on_problem(Problem(str(folder / inside), "not a kind of file that can be indexed"))


def read_documents(file: CorpusFile, on_problem: OnProblem) -> Iterator[Document]:
    """The documents of one file; problems are reported, never raised.

    Raises:
        MissingExtraError: a PDF, and pypdf is not installed.
    """
    name = file.path.name.lower()
    try:
        if name.endswith(_JSONL):
            yield from _read_jsonl(file, on_problem)
        elif name.endswith(_PDF):
            yield from _read_pdf(file)
        else:
            yield from _read_text(file, name)
    except _SkipFileError as error:  # libraries' messages may have several lines
        on_problem(Problem(str(file.path), " ".join(str(error).split())))
    except OSError as error:
        on_problem(Problem(str(file.path), f"cannot be read: {error.strerror or error}"))


def _read_text(file: CorpusFile, name: str) -> Iterator[Document]:
    text = _decode(file.path.read_bytes())
    stem = file.path.stem
    if name.endswith(_MARKDOWN):
        title, sections = read_markdown(text, stem)
    elif name.endswith(_HTML):
        title, sections = _read_html(text, stem)
    else:
        title, sections = stem, (Section("", text.strip()),)
    yield _document(file, title, sections)


def _read_html(text: str, stem: str) -> tuple[str, tuple[Section, ...]]:
    from bs4 import ParserRejectedMarkup

    try:
        return read_html(text, stem)
    except (ParserRejectedMarkup, RecursionError) as error:
        raise _SkipFileError(f"is not readable HTML: {error}") from None


def _document(file: CorpusFile, title: str, sections: tuple[Section, ...]) -> Document:
    if not any(section.text.strip() for section in sections):
        raise _SkipFileError("has no text")
    return Document(file.name, title, sections, str(file.path))


def _decode(data: bytes) -> str:
    if b"\0" in data:
        raise _SkipFileError(f"is binary: a zero byte at offset {data.index(bytes(1))}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _SkipFileError(
            f"is not UTF-8: byte {data[error.start]:#04x} in line {line}"
        ) from None


def _read_pdf(file: CorpusFile) -> Iterator[Document]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, PyPdfError
    except ModuleNotFoundError:
        raise MissingExtraError("pypdf", "pdf", f"reading {file.path}") from None
    try:
        reader = PdfReader(file.path)
        title = str((reader.metadata or {}).get("/Title") or "").strip() or file.path.stem
        text = "\n".join(page.extract_text() for page in reader.pages)
    except DependencyError as error:  # an encrypted file, and no package that decrypts it
        raise _SkipFileError(f"is an encrypted PDF: {error}") from None
    except (PyPdfError, *_DAMAGE) as error:
        raise _SkipFileError(f"is not a readable PDF: {error}") from None
    # Fonts without a proper mapping give lone surrogates, which no store can hold.
    text = text.encode("utf-8", "ignore").decode().replace("\0", " ")
    yield _document(file, title, (Section("", text.strip()),))


def _read_jsonl(file: CorpusFile, on_problem: OnProblem) -> Iterator[Document]:
    opened = gzip.open if file.path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opened(file.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _read_row(file, number, line, on_problem)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        on_problem(Problem(f"{file.path}:{number + 1}", f"broken gzip data: {error}"))


def _read_row(
    file: CorpusFile, number: int, line: bytes, on_problem: OnProblem
) -> Iterator[Document]:
    where = f"{file.path}:{number}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
        yield _row_document(row, f"{file.name}#{number}", where)
    except UnicodeDecodeError as error:
        on_problem(Problem(where, f"not UTF-8: byte {line[error.start]:#04x}"))
    except json.JSONDecodeError as error:
        on_problem(Problem(where, f"broken JSON: {error.msg} at column {error.colno}"))
    except ValueError as error:  # a number of thousands of digits
        on_problem(Problem(where, f"broken JSON: {error}"))
    except RecursionError:
        on_problem(Problem(where, "broken JSON: nested too deeply"))
    except _SkipFileError as error:
        on_problem(Problem(where, str(error)))


def _row_document(row: Any, fallback_id: str, where: str) -> Document:
    if not isinstance(row, dict):
        raise _SkipFileError(f"not a JSON object but {type(row).__name__}")
    text, title = row.get("text"), row.get("title") or ""
    if not isinstance(text, str) or not text.strip():
        raise _SkipFileError("no field 'text', or an empty one")
    if not isinstance(title, str):
        raise _SkipFileError(f"field 'title' is not text but {type(title).__name__}")
    identity = row.get("id", row.get("_id"))
    if identity is not None and not isinstance(identity, (str, int)):
        raise _SkipFileError(f"field 'id' is not text but {type(identity).__name__}")
    document_id = fallback_id if identity in (None, "") else str(identity)
    try:
        "".join((text, title, document_id)).encode()
    except UnicodeEncodeError:
        raise _SkipFileError("a lone surrogate, which is not valid text") from None
    return Document(
        document_id, title.strip(), (Section("", text.replace("\0", " ")),), where, whole=True
    )
