"""The settings of an index: everything that changes what a query returns."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"

DenseKind = Literal["flat", "ivf", "hnsw", "none"]


class IndexSettings(BaseModel):
    """How an index is built and queried; stored in its manifest.

    Attributes:
        embedder: `all-MiniLM-L6-v2` (bundled) or the path of a sentence-transformers folder.
        query_prefix: put before every query, as E5 wants; None takes the folder's own prompt.
        passage_prefix: put before every passage; None takes the folder's own prompt.
        dense: the FAISS index; `auto` is `flat` below `flat_below` passages and `ivf` above, `none`
            makes a lexical index that needs no embedder.
        flat_below: passages from which `auto` stops searching exhaustively.
        recall_target: recall@10 against flat that `nprobe` or `efSearch` is raised for.
        passage_words: words of a passage that a long document is cut into.
        whole_words: a JSONL row of at most this many words stays one passage.
        k1, b: the BM25 parameters (Robertson and Zaragoza 2009; Lucene's variant of the idf).
        stemmer: the Snowball language, or `none`.
        stopwords: `english` drops the 33 words that Lucene drops.
        depth: candidates that each side gives to the fusion.
        rrf_k: the constant of reciprocal rank fusion (Cormack et al. 2009).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedder: str = DEFAULT_EMBEDDER
    query_prefix: str | None = None
    passage_prefix: str | None = None
    dense: Literal["auto", "flat", "ivf", "hnsw", "none"] = "auto"
    flat_below: int = Field(50_000, ge=0)
    recall_target: float = Field(0.95, gt=0, le=1)
    passage_words: int = Field(100, ge=10)
    whole_words: int = Field(200, ge=10)
    k1: float = Field(1.5, ge=0)
    b: float = Field(0.75, ge=0, le=1)
    stemmer: str = "english"
    stopwords: Literal["english", "none"] = "english"
    depth: int = Field(50, ge=1, le=1024)
    rrf_k: int = Field(60, ge=1)

    def dense_kind(self, passages: int) -> DenseKind:
        """The FAISS index that `passages` passages get."""
        if self.dense != "auto":
            return self.dense
        return "flat" if passages < self.flat_below else "ivf"
