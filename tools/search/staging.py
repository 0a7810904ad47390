"""Fills the passage file of a build: corpora that are read, passages of the old index that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kg.errors import UsageError
from tools.search.assemble import Progress
from tools.search.index import PASSAGES_NAME
from tools.search.manifest import Manifest, SourceRecord, hash_file
from tools.search.passages import cut_document
from tools.search.readers import CorpusFile, Problem, list_files, read_documents
from tools.search.settings import IndexSettings
from tools.search.store import PassageStore, PassageWriter


def stage_corpora(
    paths: Sequence[str | Path],
    settings: IndexSettings,
    writer: PassageWriter,
    on_problem: Callable[[Problem], None],
    progress: Progress,
    known: Sequence[SourceRecord] = (),
) -> list[SourceRecord]:
    """Read every corpus file into `writer`; one record a file that could be opened."""
    sources: list[SourceRecord] = []
    files = list_files(paths, on_problem, {one.path: one.name for one in known})
    for number, file in enumerate(files):
        progress("read", number, len(files))
        sources.append(_stage_file(file, settings, writer, on_problem))
    progress("read", len(files), len(files))
    return sources


def _stage_file(
    file: CorpusFile,
    settings: IndexSettings,
    writer: PassageWriter,
    on_problem: Callable[[Problem], None],
) -> SourceRecord:
    documents = passages = skipped = 0

    def skip(problem: Problem) -> None:
        nonlocal skipped
        skipped += 1
        on_problem(problem)

    for document in read_documents(file, skip):
        cut = cut_document(document, settings.passage_words, settings.whole_words)
        if not cut:
            skip(Problem(document.source, "has no text"))
        elif not writer.add(cut):
            skip(Problem(document.source, f"duplicate id '{document.id}', the first one is kept"))
        else:
            documents += 1
            passages += len(cut)
    try:
        digest, size = hash_file(file.path), file.path.stat().st_size
    except OSError:  # already reported by the reader
        digest, size = "", 0
    return SourceRecord(
        path=str(file.path.resolve()),
        name=file.name,
        sha256=digest,
        bytes=size,
        documents=documents,
        passages=passages,
        skipped=skipped,
    )


def stage_existing(folder: Path, old: Manifest, writer: PassageWriter, without: set[str]) -> int:
    """Copy the old index's passages, less `without` and replaced documents.

    Returns:
        How many passages a newer document of the same id replaced.

    Raises:
        UsageError: a new document has the id of a passage that stays.
    """
    store = PassageStore(folder / old.data / PASSAGES_NAME)
    replaced = 0
    try:
        for passage in store:
            if writer.has_document(passage.document):
                replaced += 1
            elif passage.id not in without and not writer.keep(passage):
                raise UsageError(
                    f"the id '{passage.id}' of a new document is that of a passage of "
                    f"'{passage.document}'; the index is as it was",
                    "give the document another id",
                )
    finally:
        store.close()
    return replaced


def merge_sources(old: Sequence[SourceRecord], new: Sequence[SourceRecord]) -> list[SourceRecord]:
    """The files of the index: one that was read again has its new record only."""
    again = {one.path for one in new}
    return [*(one for one in old if one.path not in again), *new]
