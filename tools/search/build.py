"""Builds an index folder and changes it: `build_index`, `add`, `delete`.

Each of them stages passages, makes a complete new data folder beside the old one, embedding only
what no earlier build embedded, and then swaps the manifest in one step. A reader sees the old index
or the new one; a killed build leaves its embedded shards behind and the next one goes on from them.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from kg.errors import UsageError
from tools.search.assemble import SHARDS_NAME, Progress, assemble, quiet
from tools.search.errors import (
    SearchIndexCorruptError,
    SearchIndexMismatchError,
    SearchIndexWriteError,
)
from tools.search.index import PASSAGES_NAME
from tools.search.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceRecord,
    check_files,
    read_manifest,
    write_manifest,
)
from tools.search.readers import Problem
from tools.search.settings import IndexSettings
from tools.search.staging import merge_sources, stage_corpora, stage_existing
from tools.search.store import PassageStore, PassageWriter

_WORK = ".build"
_LOCK = ".lock"


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        path: the index folder.
        passages, documents: in the index now.
        embedded: vectors computed by this call; the others were reused.
        skipped: bad rows and files, all of them in `problems`.
        deleted: passages taken out by this call.
        unchanged: the folder already held exactly this index, and was left alone.
        manifest: as written.
    """

    path: Path
    manifest: Manifest
    embedded: int = 0
    deleted: int = 0
    unchanged: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def passages(self) -> int:
        """Passages in the index."""
        return self.manifest.passages

    @property
    def documents(self) -> int:
        """Documents in the index."""
        return self.manifest.documents

    @property
    def skipped(self) -> int:
        """Rows and files that were left out."""
        return len(self.problems)


def build_index(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: IndexSettings | None = None,
    progress: Progress = quiet,
) -> BuildReport:
    """Make `out` the index of the corpora at `paths`, reusing every vector already computed for it.

    Args:
        paths: JSONL(.gz), Markdown, text, HTML and PDF files, or folders of them.
        out: a new or empty folder, or an index to replace.
        settings: the defaults when None.
        progress: called with a stage, how much of it is done and its total (0 when unknown).

    Raises:
        UsageError: a path is missing, nothing in them could be read, or `out` is another folder.
        EmbedderUnavailableError: the embedder is not there.
        SearchIndexWriteError: the disk is full or not writable; what was done is kept.
    """
    folder = Path(out)
    chosen = settings or IndexSettings()
    with _working(folder) as work:
        problems: list[Problem] = []
        with PassageWriter(work / PASSAGES_NAME) as writer:
            sources = stage_corpora(paths, chosen, writer, problems.append, progress)
            documents = writer.finish()
        if not documents:
            named = ", ".join(str(path) for path in paths)
            first = f"; first problem: {problems[0]}" if problems else ""
            raise UsageError(f"no passage could be read from {named}{first}")
        return _publish(folder, work, chosen, sources, documents, progress, problems)


def add(out: str | Path, paths: Sequence[str | Path], progress: Progress = quiet) -> BuildReport:
    """Add the documents at `paths` to an index; a document whose id is there replaces the old one.

    Raises:
        SearchIndexCorruptError, SearchIndexMismatchError: the index cannot be extended.
        UsageError, SearchIndexWriteError: as for `build_index`.
    """
    folder = Path(out)
    read_manifest(folder)  # before anything is made in a folder that is no index
    with _working(folder) as work:
        old = _readable(folder)
        problems: list[Problem] = []
        with PassageWriter(work / PASSAGES_NAME) as writer:
            sources = stage_corpora(
                paths, old.settings, writer, problems.append, progress, old.sources
            )
            if not any(source.passages for source in sources):
                named = ", ".join(str(path) for path in paths)
                raise UsageError(f"no passage could be read from {named}; the index is as it was")
            replaced = stage_existing(folder, old, writer, set())
            documents = writer.finish()
        report = _publish(
            folder,
            work,
            old.settings,
            merge_sources(old.sources, sources),
            documents,
            progress,
            problems,
        )
        report.deleted = replaced
        return report


def delete(out: str | Path, ids: Sequence[str], progress: Progress = quiet) -> BuildReport:
    """Take passages out of an index, by passage id or by the id of their document.

    Raises:
        UsageError: none of `ids` is in the index, or nothing would be left.
        SearchIndexCorruptError, SearchIndexMismatchError, SearchIndexWriteError: as for `add`.
    """
    folder = Path(out)
    read_manifest(folder)
    with _working(folder) as work:
        return _delete(folder, work, ids, progress)


def _delete(folder: Path, work: Path, ids: Sequence[str], progress: Progress) -> BuildReport:
    old = _readable(folder)
    matching = _matching_ids(folder, old, ids)
    problems = [Problem(name, "is not in the index") for name in ids if not matching[name]]
    doomed = {passage for found in matching.values() for passage in found}
    if not doomed:
        raise UsageError(f"{folder} holds none of the ids given: {', '.join(ids[:5])}")
    if len(doomed) == old.passages:
        raise UsageError(f"deleting these ids would leave {folder} empty", "delete the folder")
    with PassageWriter(work / PASSAGES_NAME) as writer:
        stage_existing(folder, old, writer, doomed)
        documents = writer.finish()
    report = _publish(folder, work, old.settings, list(old.sources), documents, progress, problems)
    report.deleted = len(doomed)
    return report


def _readable(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def _matching_ids(folder: Path, old: Manifest, ids: Sequence[str]) -> dict[str, list[str]]:
    store = PassageStore(folder / old.data / PASSAGES_NAME)
    try:
        return store.matching(ids)
    finally:
        store.close()


@contextmanager
def _working(folder: Path) -> Iterator[Path]:
    """The work folder inside `folder`, held by one process, removed when the work was published."""
    try:
        _claim(folder)
        work = folder / _WORK
        with FileLock(folder / _LOCK, timeout=0):
            work.mkdir(exist_ok=True)
            try:
                yield work
            except UsageError:
                # Nothing was embedded that a corrected command could go on from.
                if not (work / SHARDS_NAME).exists():
                    shutil.rmtree(work)
                raise
            shutil.rmtree(work)
    except Timeout:
        raise UsageError(f"another process is building {folder}", "wait for it to end") from None
    except (OSError, sqlite3.Error) as error:
        raise SearchIndexWriteError(
            f"{folder} could not be written: {error}",
            "free some space or choose another folder, then run the same command to go on",
        ) from error


def _claim(folder: Path) -> None:
    """Make `folder`, or make sure that it is ours to write into."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = {MANIFEST_NAME, _WORK, _LOCK}
    names = {path.name for path in folder.iterdir()}
    if names and not names & ours:
        raise UsageError(
            f"{folder} is not empty and not an index", "choose a new folder for the index"
        )


def _publish(
    folder: Path,
    work: Path,
    settings: IndexSettings,
    sources: list[SourceRecord],
    documents: int,
    progress: Progress,
    problems: list[Problem],
) -> BuildReport:
    """Assemble the data folder and swap it in; the old one goes once the new one is in place."""
    old = _existing_manifest(folder)
    built = assemble(folder, work, settings, sources, documents, old, progress)
    if built is None:
        return BuildReport(folder, read_manifest(folder), unchanged=True, problems=problems)
    write_manifest(folder, built.manifest)
    for path in folder.glob("data-*"):
        if path.name != built.manifest.data:
            shutil.rmtree(path, ignore_errors=True)
    return BuildReport(folder, built.manifest, embedded=built.embedded, problems=problems)


def _existing_manifest(folder: Path) -> Manifest | None:
    """The manifest to replace; a damaged one counts as none, a rebuild being its cure."""
    try:
        return read_manifest(folder)
    except (SearchIndexCorruptError, SearchIndexMismatchError):
        return None
