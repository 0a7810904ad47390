"""Native libraries that long computations on CPU are started with: an allocator and OpenMP.

Either counts only when it is loaded before everything else, so the program starts itself anew with it.
`benchmarks/preload.py` measures what they bring.

Torch asks for the memory of each tensor aligned to 64 bytes. glibc's allocator cuts such pieces out of
larger ones and leaves crumbs; in a process that plays, scores and updates by turns the crumbs gather,
and finding a free piece takes time. jemalloc keeps pieces of one size together.

Torch computes with GNU's OpenMP, where each thread that computes has a team of its own. As soon as the
teams together have more threads than there are cores, none of their threads spins at the end of a loop
any more, and each short loop pays for waking its team: an engine slows down as soon as a text encoder
or a learner has computed in another thread, idle though that one be. Intel's, which comes with
vLLM for CPUs, lets threads spin for a set time whatever their number.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_PRELOAD = "LD_PRELOAD"
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib64")
_program = False  # whether this process is the command `agent` itself


@dataclass(frozen=True)
class Library:
    """A library of a kind of which a process has one.

    Attributes:
        kind: what it is for.
        variable: the environment variable that leaves the system's own when it says `system`.
        files: parts of file names of this and of other libraries of the kind.
        options: environment variables that it is started with, where they are not set.
        candidates: where it may lie, best first.
        install: how to get it.
    """

    kind: str
    variable: str
    files: tuple[str, ...]
    options: Mapping[str, str]
    candidates: Callable[[], Iterator[Path]]
    install: str

    def preloaded(self, environment: Mapping[str, str]) -> str:
        """The one that a process with this environment is started with; "" for the system's own."""
        libraries = environment.get(_PRELOAD, "").replace(":", " ").split()
        named = (path for path in libraries if any(name in path for name in self.files))
        return next((path for path in named if "/" not in path or Path(path).is_file()), "")

    def declined(self, environment: Mapping[str, str]) -> bool:
        """Whether the system's own is asked for."""
        return environment.get(self.variable) == "system"

    def installed(self) -> Path | None:
        """One of this machine that Python starts with."""
        return next((path for path in self.candidates() if self._works(path)), None)

    def added(self, path: Path, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that is to be started with this file."""
        before = environment.get(_PRELOAD, "")
        preload = f"{path}:{before}" if before else str(path)
        return {**self.options, **environment, _PRELOAD: preload}

    def _works(self, path: Path) -> bool:
        """Whether Python starts with it: one built for another size of pages ends it at once."""
        if not path.is_file():
            return False
        environment = self.added(path, os.environ)
        tried = subprocess.run(
            [sys.executable, "-S", "-c", ""], env=environment, capture_output=True
        )
        return (
            tried.returncode == 0 and os.fsencode(path) not in tried.stderr
        )  # the loader names it


def announce() -> None:
    """Say that this process is the program `agent`: it may be started anew, a caller's own may not."""
    global _program
    _program = True


def wanted() -> bool:
    """Whether they matter here: not on a GPU, where tensors lie and are computed elsewhere."""
    return sys.platform.startswith("linux") and shutil.which("nvidia-smi") is None


def start_with(*libraries: Library) -> None:
    """Start the program `agent` anew with those of the libraries that there are and of whose kind none
    was chosen."""
    if not _program or not wanted():
        return
    environment = with_installed(os.environ, *libraries)
    if environment == os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    anew = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, anew, environment)  # noqa: S606 - our own arguments


def with_installed(environment: Mapping[str, str], *libraries: Library) -> dict[str, str]:
    """The environment with those of the libraries that there are and of whose kind none was chosen."""
    out = dict(environment)
    for library in libraries:
        if not library.preloaded(out) and not library.declined(out):
            path = library.installed()
            out = library.added(path, out) if path else out
    return out


def _jemallocs() -> Iterator[Path]:
    """The system's, else the one that Ray brings."""
    for folder in map(Path, _FOLDERS):
        yield from sorted({*folder.glob("libjemalloc.so.2"), *folder.glob("*/libjemalloc.so.2")})
    ray = find_spec("ray")
    if ray is not None and ray.origin is not None:
        yield Path(ray.origin).parent / "core" / "libjemalloc.so"


def _intel_openmps() -> Iterator[Path]:
    """Where pip and conda put it."""
    for prefix in (sys.prefix, site.USER_BASE):
        if prefix:
            yield Path(prefix) / "lib" / "libiomp5.so"


ALLOCATOR = Library(
    kind="allocator",
    variable="AGENT_ALLOCATOR",
    files=("jemalloc", "tcmalloc", "mimalloc"),
    # freed memory is kept for the next step instead of being given back and cleared anew
    options={
        "MALLOC_CONF": "background_thread:true,oversize_threshold:1,dirty_decay_ms:-1,muzzy_decay_ms:-1"
    },
    candidates=_jemallocs,
    install="apt install libjemalloc2",
)
OPENMP = Library(
    kind="OpenMP",
    variable="AGENT_OPENMP",
    files=("libiomp", "libomp", "libgomp"),
    # milliseconds that a thread spins for its next loop; 200 by default, which takes others' cores
    options={"KMP_BLOCKTIME": "2"},
    candidates=_intel_openmps,
    install="pip install intel-openmp",
)
