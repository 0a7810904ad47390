"""A database engine from a path or a URL, and transactions whose errors are the store's.

SQLite runs in WAL mode: readers never wait, and a commit survives the death of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from agent.store.write_ahead import BUSY_SECONDS, write_ahead
from kg import private_folder
from kg.errors import MissingExtraError, UsageError

_CONNECT_SECONDS = 10
_SHOWN_OPTIONS = {"host", "port", "sslmode"}


class StoreError(UsageError):
    """The store cannot be opened, read or written; the message says which and why."""


def make_engine(location: str) -> sa.Engine:
    """An engine for a file path, `sqlite:///…` or `postgresql://…`; nothing is opened yet.

    Raises:
        MissingExtraError: PostgreSQL without its driver.
        StoreError: the URL is of neither kind, or the file cannot be there.
    """
    url = _url(location)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine
    defaults = {"client_encoding": "utf8", "connect_timeout": _CONNECT_SECONDS}
    options = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        return sa.create_engine(url, connect_args=options, pool_pre_ping=True, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise MissingExtraError("psycopg", "postgres", "a PostgreSQL store") from error


@contextmanager
def transaction(
    engine: sa.Engine, writes: bool = False, failed: str = "failed"
) -> Iterator[sa.Connection]:
    """A transaction; `writes` takes SQLite's write lock at its start.

    Raises:
        StoreError: whatever the database has to say, after the name of the store and `failed`.
    """
    try:
        with engine.execution_options(writes=writes).begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        hint = "check --store (AGENT_STORE)"
        if "malformed" in cause:
            hint = f"agent trace import {label(engine)} --store NEW brings over what can be read"
        raise StoreError(f"the store {label(engine)} {failed}: {cause}", hint) from error


def label(engine: sa.Engine) -> str:
    """The store's path or URL as it may be shown: no password, wherever in the URL it stood."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        return url.database or ":memory:"
    shown = {name: value for name, value in url.query.items() if name in _SHOWN_OPTIONS}
    return url.set(query=shown, drivername="postgresql").render_as_string(hide_password=True)


def identity(engine: sa.Engine) -> str:
    """Which store it is, however its path was written and wherever from: a file's whole path, or a
    server's label."""
    database = engine.url.database
    if engine.url.get_backend_name() == "sqlite" and database and database != ":memory:":
        return str(Path(database).resolve())
    return label(engine)


def _url(location: str) -> URL:
    if "://" not in location:
        return URL.create("sqlite", database=str(_ready(Path(location).expanduser())))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        url = None
    if url is not None and url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url is not None and url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url
    # the URL itself stays out of the message and of the cause: it may hold a password
    raise StoreError(
        "the store's URL is not one turnwise knows",
        "use a file path or postgresql://user@host/name",
    )


def _ready(path: Path) -> Path:
    """The path of a database file, in a folder that exists."""
    if path.is_dir():
        raise StoreError(f"the store {path} is a folder", f"--store {path / 'trajectories.sqlite'}")
    try:
        private_folder.make(path.parent)
    except OSError as error:
        raise StoreError(f"the folder of {path} cannot be made: {error.strerror}") from error
    return path


def _configure(connection: Any, _: Any) -> None:
    """WAL and a full sync at each commit: an acknowledged episode survives a power cut too."""
    connection.isolation_level = None  # `_begin` begins the transactions
    write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: sa.Connection) -> None:
    """A writer takes its lock at once: two readers that turn writers would deadlock."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
