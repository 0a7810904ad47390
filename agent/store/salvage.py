"""What can still be read of a damaged SQLite store: episode by episode, from a copy of the file.

SQLite refuses a file that is shorter than its header says. The copy's header is marked stale, so that
the length of the file counts, and each episode is then looked up alone: those whose pages are there
come back whole, the others are told.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.store.connection import StoreError
from agent.store.rows import unpack
from agent.trajectory import Trajectory, TrajectoryError

_MAGIC = b"SQLite format 3\x00"
_VALID_FOR = (
    92  # the change for which the header's page count is true, in the file format of SQLite
)
_GONE = 10_000  # lookups in a row without a row: the end, where the end itself is gone


def is_store(path: Path) -> bool:
    """Whether a file begins as an SQLite database does; False for one that cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def salvage(path: Path, problems: list[str]) -> Iterator[Trajectory]:
    """The episodes of a store's file that are whole, oldest first; the file itself is left alone.

    Args:
        path: an SQLite store, damaged or not.
        problems: gets a line for every episode that cannot be read, and one for the end of the file
            where that is gone.

    Raises:
        StoreError: not even its table of episodes can be found.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = _copied(path, Path(folder))
        with closing(sqlite3.connect(copy)) as connection:
            connection.row_factory = sqlite3.Row
            for number in _numbers(connection, path, problems):
                try:
                    row: Any = _row(connection, number)
                    made = unpack(row) if row is not None else None
                except (sqlite3.DatabaseError, StoreError, TrajectoryError) as error:
                    problems.append(f"{path}: episode {number}: {error}")
                    continue
                if made is not None:
                    yield made


def _copied(path: Path, folder: Path) -> Path:
    copy = folder / "store.sqlite"
    shutil.copyfile(path, copy)
    log = path.with_name(path.name + "-wal")
    if log.exists():
        shutil.copyfile(log, folder / "store.sqlite-wal")
    with copy.open("r+b") as file:
        file.seek(_VALID_FOR)
        file.write(b"\x00\x00\x00\x00")
    return copy


def _numbers(connection: sqlite3.Connection, path: Path, problems: list[str]) -> Iterator[int]:
    """Row numbers to look up: up to the last, or until nothing can be read any more."""
    last = _last(connection, path)
    if last is not None:
        yield from range(1, last + 1)
        return
    number, seen = 0, 0
    lost: list[int] = []
    while number - seen < _GONE:
        number += 1
        there = _there(connection, number)
        if there is None:
            lost.append(number)
        elif there:
            yield from (*lost, number)
            seen, lost = number, []
    problems.append(f"{path}: cut off: nothing can be read behind episode {seen}")


def _last(connection: sqlite3.Connection, path: Path) -> int | None:
    """The highest row number; None when its page is gone.

    Raises:
        StoreError: there is no table of episodes.
    """
    try:
        connection.execute("SELECT seq FROM episodes LIMIT 0")
    except sqlite3.DatabaseError as error:
        raise StoreError(f"nothing can be read of the store {path}: {error}") from error
    try:
        found = connection.execute("SELECT max(seq) FROM episodes").fetchone()[0]
    except sqlite3.DatabaseError:
        return None
    return int(found or 0)


def _there(connection: sqlite3.Connection, number: int) -> bool | None:
    """Whether there is a row of this number; None when its page cannot be read."""
    try:
        return _row(connection, number) is not None
    except sqlite3.DatabaseError:
        return None


def _row(connection: sqlite3.Connection, number: int) -> Any:
    found = connection.execute("SELECT * FROM episodes WHERE seq = ?", (number,))
    return found.fetchone()
