"""The dense side: inner products of unit vectors by FAISS.

`flat` compares the query with every vector, in place in the memory-mapped vector file. `ivf` and
`hnsw` hold 8-bit codes, find candidates in them and score those again with the exact vectors, so
that their scores are flat's scores and only the choice of candidates is approximate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.search.manifest import DenseRecord
from tools.search.settings import DenseKind

VECTORS_NAME = "vectors.npy"
ANN_NAME = "dense.faiss"
RECALL_AT = 10
_BEAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_HNSW_LINKS, _EF_CONSTRUCTION = 32, 200
_ADD_ROWS = 65_536
_TRAIN_PER_LIST = 64
# Candidates that are scored again for each one asked for: 8-bit codes rarely misplace by more.
_RESCORED = 2
# A FAISS GPU index returns at most this many.
_GPU_MAX_K = 2048

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


def _faiss() -> Any:
    """The library, untyped: the stubs it ships lack most of it."""
    import faiss

    return faiss


def exact_search(queries: Vectors, vectors: Vectors, k: int) -> tuple[Rows, Vectors]:
    """The `k` rows of `vectors` with the largest inner product, [queries, k], best first."""
    faiss = _faiss()

    scores, rows = faiss.knn(
        queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return rows, scores


@dataclass
class AnnSearcher:
    """An approximate index with its beam width, and the exact vectors for the second scoring.

    Args:
        index: a trained FAISS index over the rows of `vectors`.
        kind: `ivf` or `hnsw`.
        vectors: float32 [rows, dimension].
        beam: nprobe of ivf, efSearch of hnsw.
    """

    index: Any
    kind: DenseKind
    vectors: Vectors
    beam: int

    def search(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Rows and exact scores, [queries, k], best first; row -1 where the lists ran out."""
        faiss = _faiss()

        wide = min(_RESCORED * k, len(self.vectors))
        if self.kind == "ivf":
            parameters = faiss.SearchParametersIVF(nprobe=self.beam)
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.beam, wide))
        _, rows = self.index.search(queries, wide, params=parameters)
        return _rescore(queries, self.vectors, rows, min(k, wide))


def _rescore(queries: Vectors, vectors: Vectors, rows: Rows, k: int) -> tuple[Rows, Vectors]:
    candidates = np.asarray(vectors[np.maximum(rows, 0)])  # [queries, wide, dimension]
    scores = np.einsum("qd,qwd->qw", queries, candidates)
    scores[rows < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def build_ann(
    vectors: Vectors,
    kind: DenseKind,
    out: Path,
    queries: Vectors,
    recall_target: float,
    on_row: Callable[[int], None],
) -> DenseRecord:
    """Train and write `dense.faiss`, with the narrowest beam that reaches `recall_target`.

    Args:
        vectors: unit vectors, float32 [rows, dimension].
        kind: `ivf` or `hnsw`; `flat` needs no file and has recall 1.
        out: the data folder.
        queries: sampled query vectors on which recall@10 against flat is measured.
        recall_target: stop widening at this recall.
        on_row: told how many rows were added.
    """
    if kind in ("flat", "none"):
        return DenseRecord(kind=kind, recall_queries=len(queries))
    faiss = _faiss()

    factory = describe_ann(kind, len(vectors))
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.train(_training_sample(vectors, getattr(index, "nlist", 64)))
    for start in range(0, len(vectors), _ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS]))
        on_row(min(start + _ADD_ROWS, len(vectors)))
    faiss.write_index(index, str(out / ANN_NAME))
    searcher = AnnSearcher(index, kind, vectors, 1)
    recall = _widen(searcher, queries, recall_target, getattr(index, "nlist", _BEAMS[-1]))
    return DenseRecord(
        kind=kind,
        factory=factory,
        nprobe=searcher.beam if kind == "ivf" else 0,
        ef_search=searcher.beam if kind == "hnsw" else 0,
        recall_at_10=round(recall, 4),
        recall_queries=len(queries),
    )


def describe_ann(kind: DenseKind, rows: int) -> str:
    """The FAISS factory string: 4·sqrt(rows) lists, fewer when there is little to train on."""
    if kind == "hnsw":
        return f"HNSW{_HNSW_LINKS},SQ8"
    lists = max(1, min(round(4 * sqrt(rows)), ceil(rows / _TRAIN_PER_LIST)))
    return f"IVF{lists},SQ8"


def _training_sample(vectors: Vectors, lists: int) -> Vectors:
    size = min(len(vectors), max(lists * _TRAIN_PER_LIST, 10_000))
    rows = np.random.default_rng(0).choice(len(vectors), size, replace=False)
    return np.ascontiguousarray(vectors[np.sort(rows)])


def _widen(searcher: AnnSearcher, queries: Vectors, target: float, widest: int) -> float:
    """Double the beam until recall@10 reaches `target` or nothing is left to widen; the recall."""
    truth, _ = exact_search(queries, searcher.vectors, RECALL_AT)
    recall = 0.0
    for beam in sorted({min(beam, widest) for beam in _BEAMS} | {min(widest, _BEAMS[-1])}):
        searcher.beam = beam
        found, _ = searcher.search(queries, RECALL_AT)
        recall = measure_recall(found, truth)
        if recall >= target:
            break
    return recall


def measure_recall(found: Rows, truth: Rows) -> float:
    """Mean share of each row of `truth` [queries, k] that is among `found` [queries, any]."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


class DenseIndex:
    """The dense index of an opened folder; safe to call from several threads.

    A GPU build of FAISS with a GPU present holds flat and ivf indexes on the first GPU.
    """

    def __init__(self, folder: Path, record: DenseRecord) -> None:
        # The plain view reads the same mapped pages without numpy.memmap's cost for every slice.
        self.vectors: Vectors = np.asarray(np.load(folder / VECTORS_NAME, mmap_mode="r"))
        self._record = record
        self._gpu_lock = threading.Lock()
        self._gpu: Any = None
        self._ann: AnnSearcher | None = None
        if record.kind != "flat":
            self._ann = self._open_ann(folder / ANN_NAME)
        self._move_to_gpu()

    @property
    def on_gpu(self) -> bool:
        """Whether queries run on a GPU."""
        return self._gpu is not None

    @property
    def exact(self) -> bool:
        """Whether every search compares a query with every vector."""
        return self._ann is None

    def search(self, queries: Vectors, k: int, exact: bool = False) -> tuple[Rows, Vectors]:
        """Rows and inner products, [queries, at most k], best first; row -1 where there is none.

        Args:
            queries: unit vectors, float32 [queries, dimension].
            k: rows a query.
            exact: go round an approximate index, whose lists may run out before `k`.
        """
        if exact and not self.exact:
            return exact_search(queries, self.vectors, k)
        if self._gpu is not None and k * _RESCORED <= _GPU_MAX_K:
            with self._gpu_lock:  # a GPU index shares its scratch memory between calls
                _, rows = self._gpu.search(queries, min(k * _RESCORED, len(self.vectors)))
            return _rescore(queries, self.vectors, rows, min(k, rows.shape[1]))
        if self._ann is not None:
            return self._ann.search(queries, k)
        return exact_search(queries, self.vectors, k)

    def _open_ann(self, path: Path) -> AnnSearcher:
        faiss = _faiss()

        # Inverted lists can stay on disk; FAISS maps other kinds only through the newer flag.
        ivf = self._record.kind == "ivf"
        flag = faiss.IO_FLAG_MMAP if ivf else faiss.IO_FLAG_MMAP_IFC
        index = faiss.read_index(str(path), flag)
        beam = self._record.nprobe if ivf else self._record.ef_search
        return AnnSearcher(index, self._record.kind, self.vectors, beam)

    def _move_to_gpu(self) -> None:
        faiss = _faiss()

        if self._record.kind == "hnsw" or not faiss.get_num_gpus():
            return
        if self._ann is None:
            index = faiss.IndexFlatIP(self.vectors.shape[1])
            index.add(self.vectors)
        else:
            index = self._ann.index
        resources = faiss.StandardGpuResources()
        self._gpu = faiss.index_cpu_to_gpu(resources, 0, index)
        if self._ann is not None:
            self._gpu.nprobe = self._ann.beam
