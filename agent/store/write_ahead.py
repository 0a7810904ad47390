"""SQLite's write-ahead log, turned on where several processes may open a new file at the same moment."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

BUSY_SECONDS = 60.0  # that a connection waits for others
PAUSE = 0.01  # seconds between two attempts


def write_ahead(connection: sqlite3.Connection) -> None:
    """Readers never wait for writers from now on, in this file, for all its connections.

    Raises:
        sqlite3.OperationalError: it is busy for `BUSY_SECONDS`, or twice that where SQLite waits too.
        sqlite3.DatabaseError: the file is none of SQLite's.
    """
    for _ in attempts(connection):
        time.sleep(PAUSE)


def attempts(connection: sqlite3.Connection) -> Iterator[None]:
    """Turns the log on; gives way, for a pause that is the caller's, while others keep it from that.

    SQLite does not wait by itself here while another connection writes or turns the log on too.

    Raises:
        sqlite3.OperationalError, sqlite3.DatabaseError: see `write_ahead`.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        yield
