"""The memory allocator of a long training run on CPU.

Torch asks for the memory of each tensor aligned to 64 bytes. glibc's allocator cuts such pieces out of
larger ones and leaves crumbs; in a process that plays, scores and updates by turns the crumbs gather,
and finding a free piece takes time (`benchmarks/allocator.py` measures it: it depends on the model).
jemalloc keeps pieces of one size together. An allocator counts only when it is loaded before everything
else, so the program starts itself anew with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

#: What says that no allocator is wanted but the system's: `AGENT_ALLOCATOR=system`.
VARIABLE = "AGENT_ALLOCATOR"
_PRELOAD, _OPTIONS = "LD_PRELOAD", "MALLOC_CONF"
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib64")
#: Freed memory is kept for the next step instead of being given back and cleared anew.
_KEPT = "background_thread:true,oversize_threshold:1,dirty_decay_ms:-1,muzzy_decay_ms:-1"
_program = False  # whether this process is the command `agent` itself


def announce() -> None:
    """Say that this process is the program `agent`: it may be started anew, a caller's own may not."""
    global _program
    _program = True


def preloaded(environment: Mapping[str, str]) -> str:
    """The allocator that a process with this environment is started with; "" for the system's own."""
    libraries = environment.get(_PRELOAD, "").replace(":", " ").split()
    named = (path for path in libraries if any(name in path for name in _ALLOCATORS))
    return next((path for path in named if "/" not in path or Path(path).is_file()), "")


def declined(environment: Mapping[str, str]) -> bool:
    """Whether the system's own is asked for."""
    return environment.get(VARIABLE) == "system"


def wanted() -> bool:
    """Whether it matters here: not on a GPU, in whose memory tensors lie."""
    return sys.platform.startswith("linux") and shutil.which("nvidia-smi") is None


def installed() -> Path | None:
    """A jemalloc of this machine that Python starts with: the system's, else the one that Ray brings."""
    return next((path for path in _candidates() if _works(path)), None)


def preload() -> None:
    """Start the program `agent` anew with jemalloc, where there is one and no allocator was chosen."""
    if not _program or not wanted() or preloaded(os.environ) or declined(os.environ):
        return
    path = installed()
    if path is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    anew = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, anew, with_library(path, os.environ))  # noqa: S606 - our own arguments


def with_library(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is to allocate by this library."""
    before = environment.get(_PRELOAD, "")
    added = {_PRELOAD: f"{path}:{before}" if before else str(path), _OPTIONS: _KEPT}
    return {**added, **environment, _PRELOAD: added[_PRELOAD]}


def _candidates() -> Iterator[Path]:
    for folder in map(Path, _FOLDERS):
        yield from sorted({*folder.glob("libjemalloc.so.2"), *folder.glob("*/libjemalloc.so.2")})
    ray = find_spec("ray")
    if ray is not None and ray.origin is not None:
        yield Path(ray.origin).parent / "core" / "libjemalloc.so"


def _works(path: Path) -> bool:
    """Whether Python starts with the library: one built for another size of pages ends it at once."""
    if not path.is_file():
        return False
    environment = with_library(path, os.environ)
    tried = subprocess.run([sys.executable, "-S", "-c", ""], env=environment, capture_output=True)
    return tried.returncode == 0 and os.fsencode(path) not in tried.stderr  # the loader names it
