"""`manifest.json`: what an index folder holds, how it was made, and whether it is all there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tools.search.errors import SearchIndexCorruptError, SearchIndexMismatchError
from tools.search.settings import DenseKind, IndexSettings

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2
# Below this size every open checks the checksums too; above, only the sizes.
_ALWAYS_HASHED = 64 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbedderRecord(_Record):
    """The embedder the vectors came from: its name, fingerprint and the prefixes really used."""

    name: str
    fingerprint: str
    dimension: int
    query_prefix: str
    passage_prefix: str


class LexicalRecord(_Record):
    """The BM25 index: its method, tokenizer pattern and vocabulary size."""

    method: Literal["lucene"] = "lucene"
    tokens: str = r"\w+"
    k1: float
    b: float
    stemmer: str
    stopwords: str
    vocabulary: int


class DenseRecord(_Record):
    """The dense index.

    Attributes:
        kind: flat, ivf or hnsw.
        factory: the FAISS description; empty for flat, which searches the vectors themselves.
        nprobe: IVF lists visited by a query; 0 for the others.
        ef_search: HNSW candidates kept by a query; 0 for the others.
        recall_at_10: share of flat's ten best that this index finds, over `recall_queries` queries.
    """

    kind: DenseKind
    factory: str = ""
    nprobe: int = 0
    ef_search: int = 0
    recall_at_10: float = 1.0
    recall_queries: int = 0


class SourceRecord(_Record):
    """One corpus file as it was read; `name` begins the ids of its documents."""

    path: str
    name: str
    sha256: str
    bytes: int
    documents: int
    passages: int
    skipped: int


class FileRecord(_Record):
    """Size in bytes and SHA-256 (hex) of a file of the index."""

    bytes: int
    sha256: str


class Manifest(_Record):
    """The whole of `manifest.json`; `docs/search.md` documents each key.

    Attributes:
        data: the subfolder with the files below.
        digest: SHA-256 (hex) over the settings, the embedder and every passage: equal digests mean
            equal answers.
        files: every file of the data folder by its relative name.
    """

    format: Literal["turnwise-index"] = "turnwise-index"
    version: int = FORMAT_VERSION
    created: str
    data: str
    digest: str
    passages: int
    documents: int
    settings: IndexSettings
    embedder: EmbedderRecord | None
    lexical: LexicalRecord
    dense: DenseRecord
    sources: tuple[SourceRecord, ...]
    files: dict[str, FileRecord]


def is_index(folder: Path) -> bool:
    """Whether a folder is to be opened as an index, be it a damaged one; other programs have files of
    that name too (web pages, extensions)."""
    try:
        raw = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(raw, dict) and raw.get("format") == Manifest.model_fields["format"].default


def rebuild_hint(folder: Path) -> str:
    """The command that makes an index again."""
    return f"rebuild it: agent index build CORPUS {folder}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`.

    Raises:
        SearchIndexCorruptError: it is missing, not JSON, or not of this format.
        SearchIndexMismatchError: it is of another format version.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        unfinished = (folder / ".build").is_dir()
        state = "holds an unfinished build" if unfinished else f"is not an index (no {path.name})"
        raise SearchIndexCorruptError(f"{folder} {state}", rebuild_hint(folder)) from None
    except (OSError, ValueError) as error:
        raise SearchIndexCorruptError(f"{path} is damaged: {error}", rebuild_hint(folder)) from None
    if isinstance(raw, dict) and raw.get("version") != FORMAT_VERSION:
        raise SearchIndexMismatchError(
            f"{folder} has index format {raw.get('version')!r}, not {FORMAT_VERSION}",
            rebuild_hint(folder),
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise SearchIndexCorruptError(
            f"{path} is damaged: {where}: {first['msg']}", rebuild_hint(folder)
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put `manifest` into `folder` in one step: a reader sees the old one or the new one."""
    path = folder / MANIFEST_NAME
    draft = folder / f"{MANIFEST_NAME}.new"
    with draft.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and checksum of every file under `folder`, flushed to the disk."""
    records: dict[str, FileRecord] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        records[name] = FileRecord(bytes=path.stat().st_size, sha256=hash_file(path))
    return records


def check_files(folder: Path, manifest: Manifest, verify: bool = False) -> None:
    """Compare the files with the manifest: sizes always, checksums when small or asked for.

    Raises:
        SearchIndexCorruptError: naming the first file that is missing or differs.
    """
    hashed = verify or sum(record.bytes for record in manifest.files.values()) <= _ALWAYS_HASHED
    for name, record in manifest.files.items():
        path = folder / manifest.data / name
        if not path.is_file():
            raise SearchIndexCorruptError(f"{path} is missing", rebuild_hint(folder))
        size = path.stat().st_size
        if size != record.bytes:
            raise SearchIndexCorruptError(
                f"{path} has {size} bytes instead of {record.bytes}", rebuild_hint(folder)
            )
        if hashed and hash_file(path) != record.sha256:
            raise SearchIndexCorruptError(
                f"{path} has changed since the index was built", rebuild_hint(folder)
            )
