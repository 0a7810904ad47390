"""An index that answers queries: lexical, dense, or both fused.

index = Index.open("my-index")
for hit in index.search("who discovered radium", k=3):
    print(hit.rank, hit.title, hit.text)
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from kg.errors import UsageError
from tools.search.dense import DenseIndex
from tools.search.embedder import Embedder
from tools.search.errors import SearchIndexCorruptError, SearchIndexMismatchError
from tools.search.fusion import fuse_rankings, unique_rows
from tools.search.lexical import LexicalIndex
from tools.search.manifest import Manifest, check_files, read_manifest, rebuild_hint
from tools.search.passages import Passage
from tools.search.settings import IndexSettings
from tools.search.store import PassageStore

Mode = Literal["hybrid", "lexical", "dense"]

PASSAGES_NAME = "passages.sqlite"
LEXICAL_NAME = "lexical"
CANONICAL_NAME = "canonical.npy"
# What libraries raise when a file that passed the checks still does not read.
_READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, EOFError, sqlite3.Error)
# numpy reads headers by ast.literal_eval, which two threads of one Python 3.11 must not do at once
# (SystemError: AST constructor recursion depth mismatch).
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        rank: from 1.
        id: the passage id, stable across rebuilds.
        title, text: as indexed.
        score: of the mode: reciprocal rank sum, BM25, or cosine; higher is better.
        source: the file (and line, for JSONL) it was read from.
        content_sha256: hex digest of the text.
        document: the id of the document the passage was cut from.
    """

    rank: int
    id: str
    title: str
    text: str
    score: float
    source: str
    content_sha256: str
    document: str


class Index:
    """An opened index folder. Use `Index.open`; safe to query from several threads."""

    def __init__(self, path: Path, manifest: Manifest, embedder: Embedder | None) -> None:
        self.path = path
        self.manifest = manifest
        self.embedder = embedder
        data = path / manifest.data
        self._store = PassageStore(data / PASSAGES_NAME)
        self._lexical = LexicalIndex(data / LEXICAL_NAME, manifest.settings)
        self._dense = DenseIndex(data, manifest.dense) if embedder else None
        self._canonical = np.asarray(np.load(data / CANONICAL_NAME, mmap_mode="r"))
        self._check_counts()

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: IndexSettings | None = None,
        embedder: str | None = None,
        verify: bool = False,
    ) -> Self:
        """Open an index folder without reading it whole.

        Args:
            path: the folder that `build_index` wrote.
            settings: when given, what the index must have been built with, its embedder included.
            embedder: where the embedder is, if it moved since the build.
            verify: check every file's checksum, however large.

        Raises:
            SearchIndexCorruptError: a file is missing, damaged or unreadable.
            SearchIndexMismatchError: other settings, another embedder, another format version.
            EmbedderUnavailableError: the embedder's folder is not there.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise SearchIndexCorruptError(f"{folder}: no such index", rebuild_hint(folder))
        while True:
            manifest = read_manifest(folder)
            _check_settings(folder, manifest, settings)
            asked = embedder or (settings.embedder if settings else None)
            found = _find_embedder(folder, manifest, asked)
            try:
                check_files(folder, manifest, verify)
                with _loading:
                    return cls(folder, manifest, found)
            except (SearchIndexCorruptError, *_READ_ERRORS) as error:
                if read_manifest(folder) != manifest:
                    continue  # another process published a new index while this one was opened
                if isinstance(error, SearchIndexCorruptError):
                    raise
                raise SearchIndexCorruptError(
                    f"{folder} does not read: {error}", rebuild_hint(folder)
                ) from error

    def __len__(self) -> int:
        return self.manifest.passages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the passage file; the index cannot be used afterwards."""
        self._store.close()

    @property
    def digest(self) -> str:
        """SHA-256 (hex): two indexes of one digest give the same answers."""
        return self.manifest.digest

    def warm(self) -> None:
        """Load the embedder now, so that the first query does not wait for it."""
        if self.embedder:
            self.embedder.load()

    def search(self, query: str, k: int = 3, mode: Mode = "hybrid") -> list[Hit]:
        """The `k` best passages for `query`; see `search_many`."""
        return self.search_many([query], k, mode)[0]

    def search_many(
        self, queries: Sequence[str], k: int = 3, mode: Mode = "hybrid"
    ) -> list[list[Hit]]:
        """For each query its `k` best passages, best first, no text twice.

        Where copies of a text leave fewer than `k`, it looks deeper, through an approximate index
        too, until there are `k` or no more that match.

        An empty query finds nothing. A hybrid query of which no word is known is answered by the
        dense side alone; an index without vectors answers hybrid queries lexically.

        Raises:
            UsageError: `k` is below 1, the mode is unknown, or dense search of a lexical index.
        """
        self._check_request(k, mode)
        depth = max(k, self.manifest.settings.depth)
        asked = [number for number, query in enumerate(queries) if query.strip()]
        answers: list[list[Hit]] = [[] for _ in queries]
        dense = self._dense if mode != "lexical" else None
        exact = dense is None or dense.exact
        while asked:
            sides = self._sides([queries[number] for number in asked], depth, mode, exact)
            starved = []
            for number, *rankings in zip(asked, *sides, strict=True):
                ranked = self._combine(rankings, mode)[:k]
                cut = dense or any(len(ranking) == depth for ranking in rankings)
                if len(ranked) < k and cut and not (exact and depth >= len(self)):
                    starved.append(number)  # copies of one text took the places
                else:
                    answers[number] = self._hits(ranked)
            asked, depth, exact = starved, min(4 * depth, len(self)), True
        return answers

    def _sides(
        self, queries: Sequence[str], depth: int, mode: Mode, exact: bool
    ) -> list[list[list[tuple[int, float]]]]:
        """By retriever, then by query: rows with their scores, best first, at most `depth`."""
        sides = []
        if mode != "dense":
            sides.append([self._lexical_side(query, depth) for query in queries])
        if mode != "lexical" and self._dense:
            sides.append(self._dense_sides(queries, depth, exact))
        return sides

    def passages(self) -> Iterator[Passage]:
        """Every passage of the index, read as it is asked for."""
        return iter(self._store)

    def info(self) -> dict[str, Any]:
        """The manifest as JSON values, without the list of files, with the path and the device."""
        facts = self.manifest.model_dump(mode="json", exclude={"files"})
        size = sum(record.bytes for record in self.manifest.files.values())
        gpu = bool(self._dense and self._dense.on_gpu)
        return {"path": str(self.path), "bytes": size, "gpu": gpu, **facts}

    def _check_counts(self) -> None:
        counts = {"passages": len(self._store), "lexical": len(self._lexical)}
        counts["canonical"] = len(self._canonical)
        if self._dense:
            counts["vectors"] = len(self._dense.vectors)
        for name, count in counts.items():
            if count != self.manifest.passages:
                raise ValueError(f"{name} has {count} rows, not {self.manifest.passages}")

    def _check_request(self, k: int, mode: str) -> None:
        if k < 1:
            raise UsageError(f"k is {k}, it must be at least 1")
        if mode not in ("hybrid", "lexical", "dense"):
            raise UsageError(f"no search mode '{mode}'", "choose hybrid, lexical or dense")
        if mode == "dense" and not self._dense:
            raise UsageError(f"{self.path} has no vectors", "search it with mode lexical")

    def _lexical_side(self, query: str, depth: int) -> list[tuple[int, float]]:
        rows, scores = self._lexical.search(query, depth)
        return list(zip(rows.tolist(), scores.tolist(), strict=True))

    def _dense_sides(
        self, queries: Sequence[str], depth: int, exact: bool
    ) -> list[list[tuple[int, float]]]:
        assert self._dense is not None
        assert self.embedder is not None
        rows, scores = self._dense.search(self.embedder.encode_queries(queries), depth, exact)
        return [
            [(row, score) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def _combine(
        self, rankings: Sequence[list[tuple[int, float]]], mode: Mode
    ) -> list[tuple[int, float]]:
        """One ranking of rows, each text once, of the rankings of one query."""
        unique = [unique_rows([row for row, _ in ranking], self._canonical) for ranking in rankings]
        if mode == "hybrid":
            return fuse_rankings(unique, self.manifest.settings.rrf_k)
        best: dict[int, float] = {}
        for row, score in rankings[0]:
            best.setdefault(int(self._canonical[row]), score)
        return [(row, best[row]) for row in unique[0]]

    def _hits(self, ranked: Sequence[tuple[int, float]]) -> list[Hit]:
        passages = self._store.rows([row for row, _ in ranked])
        return [
            Hit(
                rank,
                passage.id,
                passage.title,
                passage.text,
                score,
                passage.source,
                passage.content_sha256,
                passage.document,
            )
            for rank, (passage, (_, score)) in enumerate(zip(passages, ranked, strict=True), 1)
        ]


def _check_settings(folder: Path, manifest: Manifest, wanted: IndexSettings | None) -> None:
    if wanted is None:
        return
    built = manifest.settings.model_dump(exclude={"embedder"})
    for name, value in wanted.model_dump(exclude={"embedder"}).items():
        if built[name] != value:
            raise SearchIndexMismatchError(
                f"{folder} was built with {name}={built[name]!r}, {value!r} was asked for",
                rebuild_hint(folder),
            )


def _find_embedder(folder: Path, manifest: Manifest, name: str | None) -> Embedder | None:
    record = manifest.embedder
    if record is None:
        return None
    named = manifest.settings.model_copy(update={"embedder": name or record.name})
    embedder = Embedder.from_settings(named)
    if embedder.fingerprint != record.fingerprint:
        raise SearchIndexMismatchError(
            f"the embedder in {embedder.folder} is not the one {folder} was built with"
            f" ({embedder.fingerprint[:12]} instead of {record.fingerprint[:12]})",
            rebuild_hint(folder),
        )
    # The prefixes are the recorded ones, whatever the folder's own prompts say today.
    return Embedder(embedder.folder, record.query_prefix, record.passage_prefix)
