"""One process at a time: a lock file that is let go when its process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kg.errors import UsageError


@contextmanager
def held(path: Path, busy: str, hint: str) -> Iterator[None]:
    """Keep other processes out for as long as the context lasts.

    Args:
        path: of the lock file, made when it is not there and left there.
        busy, hint: what the error says when another process holds it.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written: {error}", hint) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(busy, hint) from error
        yield
