"""The tables of a store, their full-text index, and the way up from older versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from agent.store.connection import StoreError, label, transaction
from agent.store.rows import search_columns

SCHEMA_VERSION = 2
_LOCK = 7205  # of PostgreSQL's advisory locks: one process at a time lays out the tables
_ENCODINGS = ("UTF8", "SQL_ASCII")
_BATCH = 500


class _Key(sa.types.TypeDecorator[str]):
    """Text ordered by code point on both engines, so that ranges of ids and times mean the same."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """The C collation is PostgreSQL's name for that order; it is SQLite's own."""
        return sa.Text(collation="C" if dialect.name == "postgresql" else None)

    def coerce_compared_value(self, op: Any, value: Any) -> sa.types.TypeEngine[Any]:
        """Plain text beside the column: BETWEEN and IN take no operand with a collation."""
        return sa.Text()


metadata = sa.MetaData()
episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("id", _Key, nullable=False, unique=True),
    sa.Column("created", _Key, nullable=False, index=True),
    sa.Column("task", _Key, nullable=False, index=True),
    sa.Column("grp", _Key, nullable=False, index=True),
    sa.Column("policy", _Key, nullable=False, index=True),
    sa.Column("status", _Key, nullable=False, index=True),
    sa.Column("stop_reason", _Key, nullable=False, index=True),
    sa.Column("reward", sa.Float, index=True),
    sa.Column("seed", _Key, nullable=False, server_default="", index=True),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("token_ids", sa.LargeBinary, nullable=False),
    sa.Column("logprobs", sa.LargeBinary, nullable=False),
)
versions = sa.Table("turnwise_schema", metadata, sa.Column("version", sa.Integer, nullable=False))
words = sa.table("episodes_text", sa.column("rowid"))

# PostgreSQL's parser takes HCl/NaOH for a path, a.b for a host and <b> for a tag: the characters that
# make it do so become spaces. A tsvector holds 1 MB at most, so that long texts are cut.
TSVECTOR = (
    "to_tsvector('simple', "
    "translate(left(question, 60000) || ' ' || left(answer, 60000), '/.@-_<&+', '        '))"
)
TSQUERY = "plainto_tsquery('simple', translate(:words, '/.@-_<&+', '        '))"

_FTS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS episodes_text USING fts5"
    "(question, answer, content='episodes', content_rowid='seq')",
    "CREATE TRIGGER IF NOT EXISTS episodes_added AFTER INSERT ON episodes BEGIN INSERT INTO "
    "episodes_text(rowid, question, answer) VALUES (new.seq, new.question, new.answer); END",
    "CREATE TRIGGER IF NOT EXISTS episodes_removed AFTER DELETE ON episodes BEGIN INSERT INTO "
    "episodes_text(episodes_text, rowid, question, answer) "
    "VALUES ('delete', old.seq, old.question, old.answer); END",
    "CREATE TRIGGER IF NOT EXISTS episodes_changed AFTER UPDATE OF question, answer ON episodes "
    "BEGIN INSERT INTO episodes_text(episodes_text, rowid, question, answer) "
    "VALUES ('delete', old.seq, old.question, old.answer); INSERT INTO "
    "episodes_text(rowid, question, answer) VALUES (new.seq, new.question, new.answer); END",
)


def prepare(engine: sa.Engine) -> None:
    """Make the tables, or bring them up to this version; a store that is current is only read.

    Raises:
        StoreError: it cannot be opened, belongs to another program, or is of a newer version.
    """
    with transaction(engine, failed="does not open") as connection:
        if _installed(connection) == SCHEMA_VERSION:
            return
    with transaction(engine, writes=True, failed="does not open") as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        version = _installed(connection)
        if version is None:
            _create(connection)
        else:
            for step in range(version, SCHEMA_VERSION):
                _STEPS[step](connection)
            connection.execute(sa.update(versions).values(version=SCHEMA_VERSION))


def _installed(connection: sa.Connection) -> int | None:
    """The version of the tables that are there; None when there are none yet."""
    tables = sa.inspect(connection).get_table_names()
    if versions.name not in tables:
        if episodes.name in tables or (tables and connection.dialect.name == "sqlite"):
            raise StoreError(
                f"the store {label(connection.engine)} is a database of another program",
                "name another --store",
            )
        return None
    version = int(connection.execute(sa.select(versions.c.version)).scalar_one())
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the store {label(connection.engine)} has schema {version}; "
            f"this version of turnwise reads up to {SCHEMA_VERSION}",
            "upgrade turnwise, or use another --store",
        )
    return version


def _create(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
        if encoding not in _ENCODINGS:
            raise StoreError(
                f"the database {label(connection.engine)} has the encoding {encoding}",
                "createdb -E UTF8 -T template0 NAME",
            )
    metadata.create_all(connection)
    connection.execute(sa.insert(versions).values(version=SCHEMA_VERSION))
    _index_text(connection)


def _index_text(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for statement in _FTS:
            connection.execute(sa.text(statement))
    else:
        connection.execute(
            sa.text(f"CREATE INDEX IF NOT EXISTS episodes_words ON episodes USING gin ({TSVECTOR})")
        )


def _from_1_to_2(connection: sa.Connection) -> None:
    """Seeds get a column, times one form, and keys of PostgreSQL no limit and the C collation."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("DROP INDEX IF EXISTS episodes_text"))
        for name in ("id", "created", "task", "grp", "policy", "status", "stop_reason"):
            connection.execute(
                sa.text(f'ALTER TABLE episodes ALTER COLUMN {name} TYPE text COLLATE "C"')
            )
    collation = ' COLLATE "C"' if connection.dialect.name == "postgresql" else ""
    connection.execute(
        sa.text(f"ALTER TABLE episodes ADD COLUMN seed TEXT{collation} NOT NULL DEFAULT ''")
    )
    _index_text(connection)
    for index in episodes.indexes:
        index.create(connection, checkfirst=True)
    _derive_columns(connection)


def _derive_columns(connection: sa.Connection) -> None:
    """Fill the columns to search by from the records, a batch at a time."""
    last = 0
    query = sa.select(episodes.c.seq, episodes.c.record).order_by(episodes.c.seq).limit(_BATCH)
    while rows := connection.execute(query.where(episodes.c.seq > last)).all():
        for seq, record in rows:
            connection.execute(
                sa.update(episodes).where(episodes.c.seq == seq).values(**search_columns(record))
            )
        last = rows[-1].seq


_STEPS: dict[int, Callable[[sa.Connection], None]] = {1: _from_1_to_2}
