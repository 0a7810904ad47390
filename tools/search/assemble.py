"""From staged passages to a complete data folder: keys, vectors, BM25, FAISS, manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.search.dense import VECTORS_NAME, build_ann
from tools.search.embedder import Embedder
from tools.search.errors import SearchIndexCorruptError
from tools.search.index import CANONICAL_NAME, LEXICAL_NAME, PASSAGES_NAME
from tools.search.lexical import build_lexical
from tools.search.manifest import (
    DenseRecord,
    EmbedderRecord,
    LexicalRecord,
    Manifest,
    SourceRecord,
    check_files,
    record_files,
)
from tools.search.passages import Passage
from tools.search.settings import IndexSettings
from tools.search.shards import (
    VectorPool,
    embed_missing,
    embedding_key,
    pack_keys,
    write_vectors,
)
from tools.search.store import PassageStore

Progress = Callable[[str, int, int], None]

SHARDS_NAME = "shards"
_DATA_DRAFT = "data"
_SAMPLE_QUERIES, _SAMPLE_WORDS = 200, 8
_REPORT_EVERY = 200


def quiet(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Built:
    """A data folder in place, not yet named by the manifest on disk."""

    manifest: Manifest
    embedded: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """One pass over the staged passages.

    Attributes:
        digest: over settings, embedder and passages, hex.
        keys: unique embedding keys, sorted.
        of_row: for each row the position of its key.
        first_row: for each key the first row that has it.
        lengths: for each key the characters of its text.
        canonical: for each row the first row of the same text.
    """

    digest: str
    keys: NDArray[np.bytes_]
    of_row: NDArray[np.int64]
    first_row: NDArray[np.int64]
    lengths: NDArray[np.int64]
    canonical: NDArray[np.int32]


def assemble(
    folder: Path,
    work: Path,
    settings: IndexSettings,
    sources: Sequence[SourceRecord],
    documents: int,
    old: Manifest | None,
    progress: Progress,
) -> Built | None:
    """Make the data folder of the passages staged in `work` and move it into `folder`.

    Returns:
        The new manifest, or None when `old` already describes exactly this, undamaged.
    """
    store = PassageStore(work / PASSAGES_NAME)
    try:
        kind = settings.dense_kind(len(store))
        embedder = Embedder.from_settings(settings) if kind != "none" else None
        scan = _scan_passages(store, settings, embedder, progress)
        if old and _is_current(folder, old, scan.digest, sources):
            return None
        data = work / _DATA_DRAFT
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        np.save(data / CANONICAL_NAME, scan.canonical)
        vocabulary = _build_lexical(store, settings, data, progress)
        dense, embedded = DenseRecord(kind="none"), 0
        if embedder:
            pool = _open_pool(folder, work, scan, embedder, old)
            embedded = _embed(store, pool, scan, embedder, progress)
            write_vectors(data / VECTORS_NAME, pool, scan.of_row, embedder.dimension)
            dense = _build_dense(store, settings, data, embedder, progress)
        count = len(store)
    finally:
        store.close()
    os.replace(work / PASSAGES_NAME, data / PASSAGES_NAME)
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        data=_free_name(folder, scan.digest),
        digest=scan.digest,
        passages=count,
        documents=documents,
        settings=settings,
        embedder=_embedder_record(settings, embedder),
        lexical=_lexical_record(settings, vocabulary),
        dense=dense,
        sources=tuple(sources),
        files=record_files(data),
    )
    os.rename(data, folder / manifest.data)
    return Built(manifest, embedded)


def _scan_passages(
    store: PassageStore, settings: IndexSettings, embedder: Embedder | None, progress: Progress
) -> _Scan:
    digest = hashlib.sha256(settings.model_dump_json(exclude={"embedder"}).encode())
    mark = embedder.fingerprint if embedder else ""
    prefix = embedder.passage_prefix if embedder else ""
    digest.update(f"{mark}\0{prefix}\0{embedder.query_prefix if embedder else ''}\0".encode())
    keys: list[bytes] = []
    lengths: list[int] = []
    canonical: list[int] = []
    first_of_text: dict[str, int] = {}
    for row, passage in enumerate(store):
        key = embedding_key(mark, prefix, passage.indexed_text)
        content = passage.content_sha256
        digest.update(f"{passage.id}\0{passage.document}\0{content}\0".encode() + key)
        keys.append(key)
        lengths.append(len(passage.indexed_text))
        canonical.append(first_of_text.setdefault(content, row))
        if row % _REPORT_EVERY == 0:
            progress("scan", row, len(store))
    unique, first_row, of_row = np.unique(pack_keys(keys), return_index=True, return_inverse=True)
    return _Scan(
        digest=digest.hexdigest(),
        keys=unique,
        of_row=of_row.astype(np.int64),
        first_row=first_row.astype(np.int64),
        lengths=np.array(lengths, np.int64)[first_row],
        canonical=np.array(canonical, np.int32),
    )


def _is_current(folder: Path, old: Manifest, digest: str, sources: Sequence[SourceRecord]) -> bool:
    if old.digest != digest or _provenance(old.sources) != _provenance(sources):
        return False
    try:
        check_files(folder, old)
    except SearchIndexCorruptError:
        return False
    return True


def _provenance(sources: Sequence[SourceRecord]) -> list[tuple[str, str]]:
    """Where passages stand: a file whose bytes changed may hold the same ones on other lines."""
    return [(one.path, one.sha256) for one in sources]


def _build_lexical(
    store: PassageStore, settings: IndexSettings, data: Path, progress: Progress
) -> int:
    def on_text(done: int) -> None:
        if done % _REPORT_EVERY == 0 or done == len(store):
            progress("lexical", done, len(store))

    texts = (passage.indexed_text for passage in store)
    return build_lexical(texts, settings, data / LEXICAL_NAME, on_text)


def _open_pool(
    folder: Path, work: Path, scan: _Scan, embedder: Embedder, old: Manifest | None
) -> VectorPool:
    """The shards of an earlier, killed build, and the old index's vectors where they still fit."""
    pool = VectorPool(work / SHARDS_NAME, scan.keys)
    if old and old.embedder and old.embedder.fingerprint == embedder.fingerprint:
        prefix = old.embedder.passage_prefix
        try:
            check_files(folder, old)
            store = PassageStore(folder / old.data / PASSAGES_NAME)
        except SearchIndexCorruptError:
            return pool
        keys = [embedding_key(embedder.fingerprint, prefix, p.indexed_text) for p in store]
        store.close()
        pool.lend(pack_keys(keys), np.load(folder / old.data / VECTORS_NAME, mmap_mode="r"))
    return pool


def _embed(
    store: PassageStore, pool: VectorPool, scan: _Scan, embedder: Embedder, progress: Progress
) -> int:
    def read_texts(positions: NDArray[np.int64]) -> list[str]:
        rows: list[int] = scan.first_row[positions].tolist()
        return [passage.indexed_text for passage in store.rows(rows)]

    reused = len(scan.keys) - len(pool.missing)
    progress("embed", reused, len(scan.keys))
    return embed_missing(
        pool,
        embedder,
        scan.lengths,
        read_texts,
        lambda done: progress("embed", reused + done, len(scan.keys)),
    )


def _build_dense(
    store: PassageStore, settings: IndexSettings, data: Path, embedder: Embedder, progress: Progress
) -> DenseRecord:
    kind = settings.dense_kind(len(store))
    if kind == "flat":
        return DenseRecord(kind=kind)
    vectors = np.load(data / VECTORS_NAME, mmap_mode="r")
    queries = embedder.encode_queries(_sample_queries(store))
    return build_ann(
        vectors,
        kind,
        data,
        queries,
        settings.recall_target,
        lambda done: progress("dense", done, len(vectors)),
    )


def _sample_queries(store: PassageStore) -> list[str]:
    """Stand-ins for questions: runs of a few words from passages drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    size = min(_SAMPLE_QUERIES, len(store))
    rows: list[int] = np.sort(rng.choice(len(store), size, replace=False)).tolist()
    return [_word_run(passage, rng) for passage in store.rows(rows)]


def _word_run(passage: Passage, rng: np.random.Generator) -> str:
    words = passage.text.split()
    start = int(rng.integers(max(1, len(words) - _SAMPLE_WORDS + 1)))
    return " ".join(words[start : start + _SAMPLE_WORDS])


def _free_name(folder: Path, digest: str) -> str:
    number = 1
    while (folder / f"data-{digest[:12]}-{number}").exists():
        number += 1
    return f"data-{digest[:12]}-{number}"


def _embedder_record(settings: IndexSettings, embedder: Embedder | None) -> EmbedderRecord | None:
    if embedder is None:
        return None
    return EmbedderRecord(
        name=settings.embedder,
        fingerprint=embedder.fingerprint,
        dimension=embedder.dimension,
        query_prefix=embedder.query_prefix,
        passage_prefix=embedder.passage_prefix,
    )


def _lexical_record(settings: IndexSettings, vocabulary: int) -> LexicalRecord:
    return LexicalRecord(
        k1=settings.k1,
        b=settings.b,
        stemmer=settings.stemmer,
        stopwords=settings.stopwords,
        vocabulary=vocabulary,
    )
