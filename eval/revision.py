"""Which source a run was made with, where that is a git checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def source(root: Path = _ROOT) -> dict[str, str | bool]:
    """The commit that is checked out (`revision`), and whether tracked files differ from it (`dirty`).

    Empty for an installed package, and where git does not answer.
    """
    if not (root / ".git").exists():
        return {}
    try:
        revision = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"revision": revision, "dirty": bool(changed)}


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    return done.stdout.strip()
