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
vLLM for CPUs, does the same unless it is told how long threads are to spin.
"""

from __future__ import annotations

import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_PRELOAD = "LD_PRELOAD"
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib64")
_STARTED = "AGENT_STARTED_ANEW"  # the process that was: what it was to get it has, or cannot have
_LOADED = "import sys; sys.exit(sys.argv[1] not in open('/proc/self/maps').read())"
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
        machine: the architecture that it is made for; "" for all.
    """

    kind: str
    variable: str
    files: tuple[str, ...]
    options: Mapping[str, str]
    candidates: Callable[[], Iterator[Path]]
    install: str
    machine: str = ""

    def wanted(self) -> bool:
        """Whether it matters here: not on a GPU, where tensors lie and are computed elsewhere."""
        linux = sys.platform.startswith("linux") and self.machine in ("", platform.machine())
        return linux and shutil.which("nvidia-smi") is None

    def preloaded(self, environment: Mapping[str, str]) -> str:
        """The one that a process with this environment is started with; "" for the system's own."""
        named = filter(self._of_kind, _preloads(environment))
        return next((path for path in named if "/" not in path or Path(path).is_file()), "")

    def declined(self, environment: Mapping[str, str]) -> bool:
        """Whether the system's own is asked for."""
        return environment.get(self.variable) == "system"

    def installed(self) -> Path | None:
        """One of this machine that Python starts with."""
        return next((path for path in self.candidates() if self._works(path)), None)

    def added(self, path: Path, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that is to be started with this file; others of the kind are
        left out."""
        others = [one for one in _preloads(environment) if not self._of_kind(one)]
        return {**self.options, **environment, _PRELOAD: ":".join([str(path), *others])}

    def _of_kind(self, path: str) -> bool:
        return any(name in Path(path).name for name in self.files)

    def _works(self, path: Path) -> bool:
        """Whether Python starts with it: one built for another size of pages ends it at once, and the
        loader takes no path with a space or a colon."""
        if not path.is_file():
            return False
        tried = subprocess.run(  # noqa: S603 - Python itself
            [sys.executable, "-S", "-c", _LOADED, os.path.realpath(path)],
            env=self.added(path, os.environ),
            capture_output=True,
        )
        return tried.returncode == 0


def announce() -> None:
    """Say that this process is the program `agent`: it may be started anew, a caller's own may not."""
    global _program
    _program = True


def start_with(*libraries: Library) -> None:
    """Start the program `agent` anew, once, with those of the libraries that matter and are there and of
    whose kind none was chosen."""
    if not _program or os.environ.get(_STARTED) == str(os.getpid()):
        return
    environment = with_installed(os.environ, *libraries)
    if environment == os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    anew = [sys.executable, *sys.orig_argv[1:]]
    marked = {**environment, _STARTED: str(os.getpid())}
    os.execve(sys.executable, anew, marked)  # noqa: S606 - our own arguments


def with_installed(environment: Mapping[str, str], *libraries: Library) -> dict[str, str]:
    """The environment with those of the libraries that `start_with` adds."""
    out = dict(environment)
    for library in libraries:
        if library.wanted() and not library.preloaded(out) and not library.declined(out):
            path = library.installed()
            out = library.added(path, out) if path else out
    return out


def _preloads(environment: Mapping[str, str]) -> list[str]:
    return environment.get(_PRELOAD, "").replace(":", " ").split()


def _jemallocs() -> Iterator[Path]:
    """The system's, else the one that Ray brings."""
    for folder in map(Path, _FOLDERS):
        yield from sorted({*folder.glob("libjemalloc.so.2"), *folder.glob("*/libjemalloc.so.2")})
    ray = find_spec("ray")
    if ray is not None and ray.origin is not None:
        yield Path(ray.origin).parent / "core" / "libjemalloc.so"


def _intel_openmps() -> Iterator[Path]:
    """Where pip and conda put it."""
    users = site.getuserbase() if site.ENABLE_USER_SITE else ""
    for prefix in filter(None, (sysconfig.get_path("data"), sys.prefix, users)):
        yield Path(prefix) / "lib" / "libiomp5.so"


ALLOCATOR = Library(
    kind="allocator",
    variable="AGENT_ALLOCATOR",
    files=("jemalloc", "tcmalloc", "mimalloc"),
    # Freed memory is kept for ten seconds instead of being given back and cleared anew at once. Kept for
    # ever, it only grows where no two steps ask for the same sizes.
    options={
        "MALLOC_CONF": "background_thread:true,oversize_threshold:1,"
        "dirty_decay_ms:10000,muzzy_decay_ms:10000"
    },
    candidates=_jemallocs,
    install="apt install libjemalloc2",
)
OPENMP = Library(
    kind="OpenMP",
    variable="AGENT_OPENMP",
    files=("libiomp", "libomp", "libgomp"),
    # milliseconds that a thread spins for its next loop: by default none as soon as there are more
    # threads than cores, and else 200, in which others wait for the core
    options={"KMP_BLOCKTIME": "2"},
    candidates=_intel_openmps,
    install="pip install intel-openmp",
    machine="x86_64",
)
