"""Model folders on disk: made whole or not at all, and known by what is in them.

A folder that this package makes carries `turnwise.json`, a `Manifest`: where the model came from
and the size and SHA-256 of each file. `build` makes a folder under a lock, in a hidden neighbour
that is renamed into place, so a crash at any moment leaves either the whole folder or none. This
module knows nothing of where models come from.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kg.errors import PolicyUnavailableError, UsageError

logger = logging.getLogger(__name__)

#: Called with one line of text whenever a stage of long work begins.
Progress = Callable[[str], None]

MANIFEST = "turnwise.json"
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
_CONFIG_PATTERNS = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*", "additional_chat_templates/*"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken"),
)
_LOCK_SECONDS = 1800.0


class CorruptModelError(PolicyUnavailableError):
    """A model folder is incomplete or its files are not what its manifest says."""


class FileStamp(BaseModel):
    """One file: size in bytes, modification time in nanoseconds, SHA-256 in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    mtime_ns: int
    sha256: str

    def unchanged(self, path: Path) -> bool:
        """Whether `path` still has the size and time it was hashed at (no reading)."""
        found = path.stat()
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class Manifest(BaseModel):
    """What `turnwise.json` says: the folder's name, its source, the inputs' hashes, its files."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    name: str = ""
    source: str = ""
    made_from: dict[str, str] = Field(default_factory=dict)
    files: dict[str, FileStamp] = Field(default_factory=dict)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex, read in blocks (about 1 GB/s)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp(path: Path) -> FileStamp:
    """Hash a file and note its size and time."""
    found = path.stat()
    return FileStamp(size=found.st_size, mtime_ns=found.st_mtime_ns, sha256=sha256_of(path))


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` holds a model that transformers can load (config and weights)."""
    return (folder / "config.json").is_file() and bool(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of `folder` in name order: safetensors, or `.bin` where there are none."""
    for pattern in _WEIGHT_PATTERNS:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    return []


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None where there is none or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def verify(folder: Path, mend: str, *, deep: bool = False) -> Manifest:
    """Check a folder made by `build` against its manifest, and return the manifest.

    Args:
        folder: the model folder.
        mend: the command that makes the folder anew, for the error's hint.
        deep: hash the weights too (0.3 s for 270 MB); otherwise sizes only.

    Raises:
        CorruptModelError: no manifest, a file missing, or one of another size or content.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.files:
        raise CorruptModelError(f"the model in {folder} has no readable {MANIFEST}", mend)
    weights = {path.name for path in weight_files(folder)}
    for name, expected in manifest.files.items():
        problem = _problem(folder / name, expected, deep and name in weights)
        if problem:
            raise CorruptModelError(f"the model in {folder} is damaged: {name} {problem}", mend)
    return manifest


def _problem(path: Path, expected: FileStamp, deep: bool) -> str:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected.size:
        return f"has {size} bytes instead of {expected.size}"
    if deep and sha256_of(path) != expected.sha256:
        return f"has another SHA-256 than {expected.sha256}"
    return ""


def weights_version(folder: Path) -> str:
    """Twelve hex digits that name the weights in `folder`, whatever the folder is called.

    SHA-256 over the names and SHA-256 of its weight files. Hashes are kept in `turnwise.json` and
    used again while a file's size and time stay the same, so the second call reads no weights. What
    `build` sealed there is never replaced by other hashes.

    Raises:
        UsageError: the folder holds no weights.
        CorruptModelError: the weights are not the ones that the folder was sealed with.
    """
    paths = weight_files(folder)
    if not paths:
        raise UsageError(f"{folder} holds no model weights (*.safetensors)", "give a model folder")
    manifest = read_manifest(folder) or Manifest()
    known = {p.name: s for p in paths if (s := manifest.files.get(p.name)) and s.unchanged(p)}
    fresh = {p.name: stamp(p) for p in paths if p.name not in known}
    if fresh:
        _compare(folder, manifest, fresh)
        manifest.files.update(fresh)
        _remember(folder, manifest)
    stamps = known | fresh
    lines = "".join(f"{path.name} {stamps[path.name].sha256}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def config_version(folder: Path) -> str:
    """Twelve hex digits that name what of `folder`, beside the weights, shapes a reply.

    SHA-256 over the names and contents of the model's configuration, its generation settings (they say
    which tokens end a reply), its tokenizer and its chat templates. A model card, a licence and any
    other file do not count.
    """
    paths = {
        path for pattern in _CONFIG_PATTERNS for path in folder.glob(pattern) if path.is_file()
    }
    lines = (f"{path.relative_to(folder)} {sha256_of(path)}\n" for path in sorted(paths))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def _compare(folder: Path, manifest: Manifest, fresh: dict[str, FileStamp]) -> None:
    """Refuse weights of a sealed folder (one that has a name) whose content is another."""
    for name, found in fresh.items():
        sealed = manifest.files.get(name)
        if manifest.name and (sealed is None or sealed.sha256 != found.sha256):
            raise CorruptModelError(
                f"the model in {folder} is damaged: {name} is not the file it was made with",
                f"remove the folder, then: agent models pull {manifest.name}; or, if the change "
                f"was meant, remove its {MANIFEST}",
            )


def _remember(folder: Path, manifest: Manifest) -> None:
    """Keep hashes for the next call; a folder that cannot be written only costs time."""
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        temporary.write_text(_as_json(manifest), encoding="utf-8")
        temporary.replace(folder / MANIFEST)
    except OSError as error:
        logger.debug("cannot keep the weight hashes of %s: %s", folder, error)
        temporary.unlink(missing_ok=True)


def _as_json(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n"


@contextmanager
def locked(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the folder `target`; another process that wants it waits.

    The operating system drops the lock of a process that dies.

    Raises:
        PolicyUnavailableError: the lock was not free within half an hour.
        OSError: the folder beside `target` cannot be written.
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that is making {target.name}")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise PolicyUnavailableError(
                f"another process has held {lock.lock_file} for {_LOCK_SECONDS / 60:.0f} minutes",
                "stop that process, then try again",
            ) from None
    try:
        yield
    finally:
        lock.release()


def build(target: Path, manifest: Manifest, fill: Callable[[Path, Path], None]) -> Path:
    """Make the folder `target` whole or not at all; the caller holds its lock.

    Args:
        target: replaced if it exists.
        manifest: name, source and inputs; the stamps of the files are filled in here.
        fill: called with the empty folder to fill and a scratch folder on the same disk.

    Raises:
        PolicyUnavailableError: the disk is full, or refuses to be written.
        Exception: whatever `fill` raises; nothing is left behind.
    """
    from safetensors import SafetensorError

    workshop = target.parent / f".{target.name}.partial"
    try:
        _discard(workshop)  # left by a process that was killed: the lock says it is dead
        scratch, fresh = workshop / "scratch", workshop / "model"
        scratch.mkdir(parents=True)
        fresh.mkdir()
        fill(fresh, scratch)
        _seal(fresh, manifest)
        _swap_in(fresh, target, workshop / "old")
    except OSError as error:
        raise write_failure(target, error) from error
    except SafetensorError as error:  # how a full disk looks from the weights' writer
        raise write_failure(target, OSError(str(error))) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return target


def write_failure(target: Path, error: OSError) -> PolicyUnavailableError:
    """A failed write as an error that says what to do about it."""
    return PolicyUnavailableError(
        f"cannot write the model {target.name} to {target.parent}: {error.strerror or error}",
        "free disk space there, or point AGENT_HOME at another disk, then try again",
    )


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _seal(folder: Path, manifest: Manifest) -> None:
    """Stamp every file into the manifest and bring all of it to the disk."""
    files = (path for path in folder.iterdir() if path.is_file())
    paths = sorted(path for path in files if path.name != MANIFEST)  # one that was copied along
    for path in paths:
        _sync(path)
    manifest.files = {path.name: stamp(path) for path in paths}
    (folder / MANIFEST).write_text(_as_json(manifest), encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _swap_in(fresh: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
