"""Folders of what a person asked and read: nobody else on the machine looks into them."""

from __future__ import annotations

from pathlib import Path


def make(folder: Path) -> None:
    """Make a folder, and those above it that are not there, with access for its owner alone (as the XDG
    Base Directory Specification has it); one that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # a file of that name is an error
