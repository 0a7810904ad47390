"""Embeds what has not been embedded yet and keeps it in shards, so that a killed build goes on.

A vector is stored under the SHA-256 of the embedder's fingerprint, its prefix and the text. A build
that finds that key again, after a kill or in an older version of the index, uses the vector as is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from tools.search.embedder import Embedder

SHARD_ROWS = 512
_GATHER_ROWS = 16_384

# numpy leaves this function untyped.
_write_header: Callable[..., None] = write_array_header_1_0

# Fixed-width byte strings: numpy sorts and looks them up without Python objects.
Keys = NDArray[np.bytes_]
Vectors = NDArray[np.float32]


def embedding_key(fingerprint: str, prefix: str, text: str) -> bytes:
    """32 bytes that determine a passage's vector."""
    return hashlib.sha256(f"{fingerprint}\0{prefix}\0{text}".encode()).digest()


def pack_keys(keys: Sequence[bytes]) -> Keys:
    """An array [keys] of 32-byte strings."""
    return np.array(keys, dtype="S32")


class VectorPool:
    """Vectors by key, from this folder's shards and any array lent to it.

    Args:
        folder: where shards are kept; made when absent.
        wanted: the keys that matter, unique and sorted.
    """

    def __init__(self, folder: Path, wanted: Keys) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._wanted = wanted
        self._sources: list[Vectors] = []
        # For each wanted key: which source holds it (-1 none) and at which row.
        self._source = np.full(len(wanted), -1, np.int32)
        self._row = np.zeros(len(wanted), np.int64)
        self._read_shards()

    @property
    def missing(self) -> NDArray[np.int64]:
        """Positions of the wanted keys that no source holds."""
        return np.flatnonzero(self._source < 0)

    def lend(self, keys: Keys, vectors: Vectors) -> None:
        """Use `vectors` [keys, dimension] for whichever of `keys` are wanted and missing."""
        if not len(self._wanted) or not len(keys):
            return
        at = np.minimum(np.searchsorted(self._wanted, keys), len(self._wanted) - 1)
        useful = np.flatnonzero((self._wanted[at] == keys) & (self._source[at] < 0))
        self._source[at[useful]] = len(self._sources)
        self._row[at[useful]] = useful
        self._sources.append(vectors)

    def save_shard(self, positions: NDArray[np.int64], vectors: Vectors) -> None:
        """Keep the vectors of the wanted keys at `positions` on disk, then use them."""
        number = 1 + max((int(path.stem) for path in self._folder.glob("*.keys")), default=-1)
        keys = self._wanted[positions]
        _save_array(self._folder / f"{number}.vectors", vectors)
        # The keys come last: a shard without them was cut short and counts for nothing.
        _save_array(self._folder / f"{number}.keys", keys)
        self.lend(keys, np.load(self._folder / f"{number}.vectors", mmap_mode="r"))

    def gather(self, positions: NDArray[np.int64], dimension: int) -> Vectors:
        """The vectors of the wanted keys at `positions`, none of which may be missing."""
        out = np.empty((len(positions), dimension), np.float32)
        sources = self._source[positions]
        for number in np.unique(sources):
            here = sources == number
            out[here] = self._sources[number][self._row[positions[here]]]
        return out

    def _read_shards(self) -> None:
        for path in sorted(self._folder.glob("*.keys")):
            try:
                keys = np.load(path)
                vectors = np.load(path.with_suffix(".vectors"), mmap_mode="r")
            except (OSError, ValueError, EOFError):
                path.unlink()
                continue
            if len(keys) == len(vectors):
                self.lend(keys, vectors)


def _save_array(path: Path, array: NDArray[np.generic]) -> None:
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def embed_missing(
    pool: VectorPool,
    embedder: Embedder,
    lengths: NDArray[np.int64],
    read_texts: Callable[[NDArray[np.int64]], list[str]],
    on_text: Callable[[int], None],
) -> int:
    """Embed the pool's missing keys, longest first; returns how many.

    Args:
        pool: gains a shard for every `SHARD_ROWS` texts.
        embedder: makes the vectors.
        lengths: characters of each wanted text: texts of one batch should be of one length.
        read_texts: the texts of some wanted positions.
        on_text: told how many were embedded so far.
    """
    missing = pool.missing
    if not len(missing):
        return 0
    order = missing[np.argsort(-lengths[missing], kind="stable")]
    step = 4 * embedder.batch_size
    rows = max(SHARD_ROWS, step)
    for start in range(0, len(order), rows):
        shard = order[start : start + rows]
        texts = read_texts(shard)
        vectors = []
        for at in range(0, len(shard), step):
            vectors.append(embedder.encode_passages(texts[at : at + step]))
            on_text(start + min(at + step, len(shard)))
        pool.save_shard(shard, np.concatenate(vectors))
    return len(order)


def write_vectors(path: Path, pool: VectorPool, of_row: NDArray[np.int64], dimension: int) -> None:
    """Write float32 [rows, dimension]; row r is the pool's vector at position `of_row[r]`.

    Written front to back, never through a memory map: a full disk then is an error, not a crash.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(of_row), dimension)}
    with path.open("wb") as file:
        _write_header(file, header)
        for start in range(0, len(of_row), _GATHER_ROWS):
            chunk = pool.gather(of_row[start : start + _GATHER_ROWS], dimension)
            file.write(chunk.tobytes())
