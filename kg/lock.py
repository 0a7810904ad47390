"""A folder that one process at a time may write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kg.errors import UsageError

LOCK = ".lock"


@contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes off a folder while this one writes to it; ends with the process too.

    Args:
        folder: made when it is not there.
        doing: what is done there, for the message to others: "another process is … in …".

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}", "choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is {doing} in {folder}", "wait for it, or choose another --out"
            ) from error
        yield
