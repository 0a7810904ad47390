"""Where the files of benchmarks are: a local folder, a web folder, or a dataset on the Hub.

Remote files are fetched once, whole, into a cache. Files that a benchmark makes out of others (a
corpus out of the contexts of its questions) lie in the cache too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from kg.address import masked
from kg.errors import UsageError

_HUB = "hf://"
_REMOTE = ("https://", "http://", _HUB)
_SECONDS = 60.0


class DataFolder:
    """A folder of benchmark files.

    Args:
        location: a path; `https://…/`, under which the files lie by their relative names (a user and
            password in it become basic authentication, and are never shown); or
            `hf://owner/name[@revision]`, a dataset on the Hugging Face Hub.
        cache: where fetched and derived files go.

    Attributes:
        origin: where the last file came from, as a run tells it: the folder, the URL without user,
            password and query, or `hf://owner/name@COMMIT`; empty before any was read.
    """

    def __init__(self, location: str | Path, cache: Path) -> None:
        self.location = str(location)
        self.origin = ""
        self._root = cache
        self._cache = cache / hashlib.sha256(self.location.encode()).hexdigest()[:12]

    def fetched(self, url: str) -> Path:
        """A local copy of one file, wherever it is.

        Args:
            url: `https://…/FILE` or `hf://owner/name/FILE`.

        Raises:
            UsageError: it names no file, or cannot be fetched.
        """
        if url.startswith(_HUB):
            owner, _, rest = url.removeprefix(_HUB).partition("/")
            name, _, path = rest.partition("/")
            folder = f"{_HUB}{owner}/{name}"
        else:
            folder, _, path = url.rpartition("/")
        path = unquote(path)
        parts = path.split("/") if url.startswith(_HUB) else [path]
        if not url.startswith(_REMOTE) or not all(map(_plain, parts)):
            raise UsageError(
                f"'{masked(url)}' names no file that can be fetched",
                "https://HOST/FILE.jsonl, or hf://OWNER/NAME/FILE.jsonl",
            )
        inside = DataFolder(folder, self._root)
        found = inside.file(path)
        self.origin = f"{inside.origin.rstrip('/')}/{path}"
        return found

    def file(self, name: str) -> Path:
        """A local path of the file `name`, fetched when it is remote.

        Raises:
            UsageError: there is no such file, or it cannot be fetched.
        """
        if not self.location:
            raise UsageError(
                f"{name} is read from a data folder", "add --data DIR or set AGENT_DATA"
            )
        if self.location.startswith(_HUB):
            return self._from_hub(name)
        if self.location.startswith(("https://", "http://")):
            return self._from_web(name)
        path = Path(self.location) / name
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist", "point --data or AGENT_DATA at the data folder"
            )
        self.origin = str(Path(self.location).resolve())
        return path

    def derived(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        """A JSONL file of these rows in the cache; left alone when it holds them already."""
        path = self._cache / name
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not path.is_file() or path.read_text("utf-8") != text:
            _write(path, [text.encode()])
        return path

    def _from_web(self, name: str) -> Path:
        import httpx

        from agent.http import endpoint

        path = self._cache / name
        self.origin = masked(self.location)
        if path.is_file():
            return path
        to = endpoint(self.location, f"/{quote(name)}")
        try:
            with httpx.stream(
                "GET", to.url, headers=to.headers, follow_redirects=True, timeout=_SECONDS
            ) as found:
                # of a redirect's end nothing is told: its URL may be signed
                if not found.is_success:
                    raise UsageError(
                        f"{to.shown} cannot be fetched: status {found.status_code}", "check --data"
                    )
                _write(path, found.iter_bytes())
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last of bad hosts
            cause = str(error).split("\n")[0]
            raise UsageError(f"{to.shown} cannot be fetched: {cause}", "check --data") from error
        return path

    def _from_hub(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        repo, _, revision = self.location.removeprefix(_HUB).partition("@")
        try:
            found = hf_hub_download(repo, name, repo_type="dataset", revision=revision or None)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            cause = str(error).strip().split("\n")[0]
            raise UsageError(f"{name} of {self.location}: {cause}", "check --data") from error
        # the Hub's cache names the folder of a revision by its commit
        self.origin = f"{_HUB}{repo}@{found.rpartition('/snapshots/')[2].partition('/')[0]}"
        return Path(found)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Put a file into the cache, whole or not at all.

    Raises:
        UsageError: the disk is full, or the cache is no place to write to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as out:
                out.writelines(chunks)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        cause = f"{path.name} cannot be kept in {path.parent}: {error.strerror or error}"
        raise UsageError(cause, "make room there, or set AGENT_HOME to another folder") from error


def _plain(name: str) -> bool:
    """Whether it is the name of one file or folder and leads nowhere else on any system."""
    return name.isprintable() and name not in ("", ".", "..") and not {"/", "\\"} & set(name)
