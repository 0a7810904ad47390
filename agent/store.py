"""TrajectoryStore: finished episodes in SQLite or PostgreSQL, one transaction each.

Heavy fields are columns of their own so that listing and filtering never reads them: token arrays as
little-endian binary, the rest of the record as JSON (see docs/trajectory.md). SQLite runs in WAL mode:
readers never wait, and a killed process loses nothing that `add` returned from.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from agent.trajectory import Trajectory
from kg.errors import MissingExtraError, UsageError

SCHEMA_VERSION = 1
_MIN_PREFIX = 4

metadata = sa.MetaData()
episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.String(40), nullable=False, index=True),
    sa.Column("task", sa.String(256), nullable=False, index=True),
    sa.Column("grp", sa.String(256), nullable=False, index=True),
    sa.Column("policy", sa.String(256), nullable=False, index=True),
    sa.Column("status", sa.String(32), nullable=False, index=True),
    sa.Column("stop_reason", sa.String(32), nullable=False),
    sa.Column("reward", sa.Float, index=True),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("token_ids", sa.LargeBinary, nullable=False),
    sa.Column("logprobs", sa.LargeBinary, nullable=False),
)
schema = sa.Table("turnwise_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

_FTS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS episodes_text USING fts5"
    "(question, answer, content='episodes', content_rowid='seq')",
    "CREATE TRIGGER IF NOT EXISTS episodes_added AFTER INSERT ON episodes BEGIN INSERT INTO "
    "episodes_text(rowid, question, answer) VALUES (new.seq, new.question, new.answer); END",
    "CREATE TRIGGER IF NOT EXISTS episodes_removed AFTER DELETE ON episodes BEGIN INSERT INTO "
    "episodes_text(episodes_text, rowid, question, answer) "
    "VALUES ('delete', old.seq, old.question, old.answer); END",
)
_TSVECTOR = "to_tsvector('simple', question || ' ' || answer)"


class StoreError(UsageError):
    """The store cannot be opened, read or written; the message says which and why."""


@dataclass(frozen=True)
class Filter:
    """Which episodes; every given field must hold. Times are ISO strings, UTC.

    Attributes:
        reward_min, reward_max: bounds of the total reward (the sum of an episode's rewards).
        newest_first: by creation time; oldest first otherwise.
    """

    task: str | None = None
    group: str | None = None
    policy: str | None = None
    status: str | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    since: str | None = None
    until: str | None = None
    limit: int | None = None
    offset: int = 0
    newest_first: bool = True


@dataclass(frozen=True)
class Summary:
    """An episode without its turns and tokens."""

    id: str
    created: str
    task: str
    policy: str
    status: str
    stop_reason: str
    reward: float | None
    question: str
    answer: str


class TrajectoryStore:
    """Finished episodes. Use `TrajectoryStore.open`; safe to use from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | Path) -> Self:
        """Open a store, creating it when it is not there.

        Args:
            url: a file path, `sqlite:///…`, or `postgresql://…`.

        Raises:
            MissingExtraError: PostgreSQL without its driver.
            StoreError: it cannot be reached, is not a store, or is of a newer version.
        """
        engine = _engine(str(url))
        try:
            _prepare(engine)
        except SQLAlchemyError as error:
            engine.dispose()
            raise _failed(engine, "does not open", error) from error
        return cls(engine)

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TrajectoryStore({self._engine.url.render_as_string(hide_password=True)!r})"

    def add(self, trajectory: Trajectory) -> bool:
        """Store an episode in one transaction; False when its id is there already.

        Raises:
            StoreError: the disk is full or the server gone.
        """
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        insert = (
            dialect.insert(episodes)
            .values(**_row(trajectory))
            .on_conflict_do_nothing(index_elements=["id"])
            .returning(episodes.c.id)
        )
        with self._transaction(writes=True) as connection:
            return connection.execute(insert).first() is not None

    def add_many(self, trajectories: Iterable[Trajectory]) -> int:
        """Store episodes, each in a transaction of its own; gives how many were new."""
        return sum(self.add(trajectory) for trajectory in trajectories)

    def get(self, id: str) -> Trajectory:
        """The episode of that id, or of the only id that begins so.

        Raises:
            UsageError: none, or several.
        """
        if len(id) < _MIN_PREFIX:
            raise UsageError(
                f"'{id}' is too short for an id: give at least {_MIN_PREFIX} characters"
            )
        query = sa.select(episodes).where(episodes.c.id.startswith(id, autoescape=True)).limit(6)
        with self._transaction() as connection:
            found = connection.execute(query).mappings().all()
        exact = [row for row in found if row["id"] == id]
        if exact or len(found) == 1:
            return _trajectory((exact or found)[0])
        if not found:
            raise UsageError(f"no episode '{id}'", "agent trace list")
        raise UsageError(f"'{id}' is the beginning of {', '.join(row['id'] for row in found)}")

    def query(self, chosen: Filter | None = None) -> Iterator[Trajectory]:
        """Episodes in order, read as they are asked for."""
        with self._transaction() as connection:
            rows = connection.execution_options(yield_per=100).execute(
                _select(chosen or Filter(), episodes)
            )
            for row in rows.mappings():
                yield _trajectory(row)

    def summaries(self, chosen: Filter | None = None) -> list[Summary]:
        """The same without turns and tokens."""
        with self._transaction() as connection:
            rows = connection.execute(_select(chosen or Filter(), *_SUMMARY)).all()
        return [Summary(*row) for row in rows]

    def count(self, chosen: Filter | None = None) -> int:
        """How many episodes a filter chooses (its limit ignored)."""
        query = _where(sa.select(sa.func.count()).select_from(episodes), chosen or Filter())
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    def ids(self) -> set[str]:
        """Every id."""
        with self._transaction() as connection:
            return set(connection.execute(sa.select(episodes.c.id)).scalars())

    def search(self, text: str, limit: int = 20) -> list[Summary]:
        """Episodes whose question or answer holds all words of `text`, best first."""
        words = re.findall(r"\w+", text)
        if not words:
            return []
        if self._engine.dialect.name == "sqlite":
            match = " ".join(f'"{word}"' for word in words)
            join = sa.text(
                "SELECT rowid FROM episodes_text WHERE episodes_text MATCH :m ORDER BY rank"
            )
        else:
            match = " ".join(words)
            join = sa.text(
                f"SELECT seq FROM episodes WHERE {_TSVECTOR} @@ plainto_tsquery('simple', :m) "  # noqa: S608
                f"ORDER BY ts_rank({_TSVECTOR}, plainto_tsquery('simple', :m)) DESC"
            )
        with self._transaction() as connection:
            order = list(connection.execute(join, {"m": match}).scalars())[:limit]
            rows = connection.execute(
                sa.select(episodes.c.seq, *_SUMMARY).where(episodes.c.seq.in_(order))
            ).all()
        return [Summary(*row[1:]) for row in sorted(rows, key=lambda row: order.index(row[0]))]

    def delete(self, ids: Sequence[str]) -> int:
        """Remove episodes by full id; gives how many there were."""
        with self._transaction(writes=True) as connection:
            return connection.execute(sa.delete(episodes).where(episodes.c.id.in_(ids))).rowcount

    def set_rewards(self, id: str, rewards: dict[str, float]) -> None:
        """Add named rewards to an episode.

        Raises:
            UsageError: no such episode.
        """
        changed = self.get(id).with_rewards(rewards)
        row = _row(changed)
        values = {"record": row["record"], "reward": row["reward"]}
        with self._transaction(writes=True) as connection:
            connection.execute(
                sa.update(episodes).where(episodes.c.id == changed.id).values(**values)
            )

    def _transaction(self, writes: bool = False) -> _Transaction:
        return _Transaction(self._engine.execution_options(writes=writes))


class _Transaction:
    """A transaction whose database errors come out as `StoreError`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._context = engine.begin()

    def __enter__(self) -> sa.Connection:
        try:
            return self._context.__enter__()
        except SQLAlchemyError as error:
            raise _failed(self._engine, "cannot be reached", error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise _failed(self._engine, "cannot be written", failure) from failure
        if isinstance(error, DBAPIError):
            raise _failed(self._engine, "failed", error) from error


_SUMMARY = tuple(
    episodes.c[name]
    for name in (
        *("id", "created", "task", "policy", "status", "stop_reason", "reward", "question"),
        "answer",
    )
)


def _engine(url: str) -> sa.Engine:
    if "://" not in url:
        path = Path(url).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of {path} cannot be made: {error.strerror}") from error
        url = f"sqlite:///{path}"
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]
    try:
        engine = sa.create_engine(url, connect_args={"timeout": 60} if "sqlite" in url[:6] else {})
    except ModuleNotFoundError as error:
        raise MissingExtraError("psycopg", "postgres", "a PostgreSQL store") from error
    except (sa.exc.ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(
            "the store's URL is not one", "use a file path or postgresql://user@host/name"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _pragmas)
        event.listen(engine, "begin", _begin)
    return engine


def _pragmas(connection: Any, _: Any) -> None:
    """WAL for concurrent readers; a commit survives the process in any mode."""
    connection.isolation_level = None  # we begin transactions ourselves
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: sa.Connection) -> None:
    """A writer takes its lock at once: two readers that turn writers would deadlock."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare(engine: sa.Engine) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7205)"))
        metadata.create_all(connection)
        version = connection.execute(sa.select(schema.c.version)).scalar()
        if version is None:
            connection.execute(sa.insert(schema).values(version=SCHEMA_VERSION))
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"the store has schema {version}; this version of turnwise reads {SCHEMA_VERSION}",
                "upgrade turnwise, or use another --store",
            )
        if engine.dialect.name == "sqlite":
            for statement in _FTS:
                connection.execute(sa.text(statement))
        else:
            connection.execute(
                sa.text(
                    f"CREATE INDEX IF NOT EXISTS episodes_text ON episodes USING gin ({_TSVECTOR})"
                )
            )


def _failed(engine: sa.Engine, what: str, error: SQLAlchemyError) -> StoreError:
    cause = str(getattr(error, "orig", error)).strip().split("\n")[0]
    url = engine.url.render_as_string(hide_password=True).removeprefix("sqlite:///")
    return StoreError(f"the store {url} {what}: {cause}", "check --store (AGENT_STORE)")


def _row(trajectory: Trajectory) -> dict[str, Any]:
    record = trajectory.to_dict()
    del record["token_ids"], record["logprobs"]
    rewards = trajectory.rewards
    return {
        "id": trajectory.id,
        "created": trajectory.created,
        "task": _text(trajectory.task.id),
        "grp": _text(trajectory.group),
        "policy": _text(trajectory.policy),
        "status": trajectory.status.value,
        "stop_reason": trajectory.stop_reason.value,
        "reward": sum(rewards.values()) if rewards else None,
        "question": _text(trajectory.task.question),
        "answer": _text(trajectory.answer),
        "record": json.dumps(record),
        "token_ids": trajectory.token_ids.astype("<i4").tobytes(),
        "logprobs": trajectory.logprobs.astype("<f4").tobytes(),
    }


def _text(value: str) -> str:
    """For the columns to search by: PostgreSQL takes neither NUL nor lone surrogates."""
    return value.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")


def _trajectory(row: Any) -> Trajectory:
    record = json.loads(row["record"])
    logprobs = np.frombuffer(row["logprobs"], dtype="<f4")
    record["token_ids"] = np.frombuffer(row["token_ids"], dtype="<i4")
    record["logprobs"] = logprobs.tolist()
    return Trajectory.from_dict(record)


def _select(chosen: Filter, *columns: Any) -> sa.Select[Any]:
    order = (episodes.c.created, episodes.c.seq)
    query = _where(sa.select(*columns), chosen).order_by(
        *(column.desc() if chosen.newest_first else column.asc() for column in order)
    )
    return query.limit(chosen.limit).offset(chosen.offset or None)


def _where(query: sa.Select[Any], chosen: Filter) -> sa.Select[Any]:
    column = episodes.c
    bounds: tuple[tuple[Any, Any, Callable[[Any, Any], Any]], ...] = (
        (column.task, chosen.task, operator.eq),
        (column.grp, chosen.group, operator.eq),
        (column.policy, chosen.policy, operator.eq),
        (column.status, chosen.status, operator.eq),
        (column.reward, chosen.reward_min, operator.ge),
        (column.reward, chosen.reward_max, operator.le),
        (column.created, chosen.since, operator.ge),
        (column.created, chosen.until, operator.lt),
    )
    return query.where(*(hold(left, value) for left, value, hold in bounds if value is not None))
