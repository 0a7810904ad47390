"""The lexical side: BM25 scores by bm25s, saved once and memory-mapped.

Tokens are runs of letters and digits in lower case; stopwords are dropped, the rest is stemmed. One
letter alone is a token (vitamin C, carbon's C). Queries and passages go through the same function.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kg.errors import UsageError
from tools.search.settings import IndexSettings

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]

_WORD = re.compile(r"\w+")


class Tokenizer:
    """Text to stems.

    Args:
        stemmer: a Snowball language or `none`.
        stopwords: `english` or `none`.

    Raises:
        UsageError: Snowball has no such language.
    """

    def __init__(self, stemmer: str, stopwords: str) -> None:
        self._stem = _load_stemmer(stemmer)
        self._stopwords = _load_stopwords(stopwords)
        self._stems: dict[str, str] = {}
        # A Snowball stemmer keeps a buffer of its own and must not run in two threads at once.
        self._lock = threading.Lock()

    def __call__(self, text: str) -> list[str]:
        """The stems of `text`, in order, repeats kept."""
        words = [word for word in _WORD.findall(text.lower()) if word not in self._stopwords]
        stems = self._stems
        new = {word for word in words if word not in stems}
        if new:
            with self._lock:
                stems.update({word: self._stem(word) for word in new})
        return [stems[word] for word in words]


def _load_stemmer(language: str) -> Callable[[str], str]:
    if language == "none":
        return str
    import Stemmer

    if language not in Stemmer.algorithms():
        known = ", ".join(Stemmer.algorithms())
        raise UsageError(f"no stemmer for '{language}'", f"choose none or one of: {known}")
    stem: Callable[[str], str] = Stemmer.Stemmer(language).stemWord
    return stem


def _load_stopwords(name: str) -> frozenset[str]:
    if name == "none":
        return frozenset()
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN)


def build_lexical(
    texts: Iterable[str],
    settings: IndexSettings,
    out: Path,
    on_text: Callable[[int], None],
) -> int:
    """Index `texts` (row by row) into the folder `out`; returns the size of the vocabulary.

    Args:
        texts: what each row is searched by.
        settings: the tokenizer and BM25 parameters.
        out: the folder to write.
        on_text: told how many texts were tokenized, after each.
    """
    import bm25s

    tokenize = Tokenizer(settings.stemmer, settings.stopwords)
    # Id 0 stands for a passage without a single token, so that every document has a length.
    vocabulary: dict[str, int] = {"": 0}
    ids: list[list[int]] = []
    for text in texts:
        tokens = [vocabulary.setdefault(token, len(vocabulary)) for token in tokenize(text)]
        ids.append(tokens or [0])
        on_text(len(ids))
    index = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
    index.index((ids, vocabulary), show_progress=False)
    index.save(out, show_progress=False)
    return len(vocabulary)


class LexicalIndex:
    """A saved BM25 index, memory-mapped; safe to call from several threads."""

    def __init__(self, folder: Path, settings: IndexSettings) -> None:
        import bm25s

        self._index = bm25s.BM25.load(folder, mmap=True, load_vocab=True)
        # The plain view reads the same mapped pages without numpy.memmap's cost for every slice.
        scores: dict[str, Any] = self._index.scores
        for name in ("data", "indices", "indptr"):
            scores[name] = np.asarray(scores[name])
        self._tokenize = Tokenizer(settings.stemmer, settings.stopwords)

    def __len__(self) -> int:
        return int(self._index.scores["num_docs"])

    def search(self, query: str, k: int) -> Ranking:
        """Rows and BM25 scores of the `k` best passages that share a token with `query`."""
        vocabulary = self._index.vocab_dict
        ids = [vocabulary[token] for token in self._tokenize(query) if token in vocabulary]
        if not ids:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return top_rows(self._index.get_scores_from_ids(ids), k)


def top_rows(scores: NDArray[np.float32], k: int) -> Ranking:
    """The `k` rows of the highest positive scores, ties by row."""
    cut = len(scores) - k
    rows = np.argpartition(scores, cut)[cut:] if cut > 0 else np.arange(len(scores))
    rows = rows[scores[rows] > 0]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return rows.astype(np.int64), scores[rows].astype(np.float32)
