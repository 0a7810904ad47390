"""Which episodes: filters and full-text search as SQL."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from agent.record import utc
from agent.store.rows import clean, key
from agent.store.schema import TSQUERY, TSVECTOR, episodes, words
from agent.trajectory import Status
from kg.errors import UsageError

_QUERY_CHARS = 1000


@dataclass(frozen=True)
class Filter:
    """Which episodes; every given field must hold.

    Attributes:
        policy: `name@version`.
        reward_min, reward_max: bounds of the total reward (the sum of an episode's rewards).
        since, until: ISO 8601 dates or times, from and before; UTC where no zone is named.
        limit, offset: how many, after how many.
        newest_first: by creation time; oldest first otherwise.

    Raises:
        UsageError: a time, a status, a limit or an offset that is none.
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
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.offset < 0 or (self.limit or 0) < 0:
            raise UsageError("the limit and the offset cannot be negative")
        if self.status is not None and self.status not in set(Status):
            raise UsageError(f"no status '{self.status}'", ", ".join(Status))
        for name in ("since", "until"):
            self._set_time(name)

    def _set_time(self, name: str) -> None:
        given = getattr(self, name)
        if given is None:
            return
        try:
            object.__setattr__(self, name, utc(given))
        except ValueError as error:
            raise UsageError(
                f"{name}: {error}", "write 2026-01-31 or 2026-01-31T09:00+01:00"
            ) from error


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


_SUMMARY = tuple(episodes.c[name] for name in Summary.__dataclass_fields__)


def select_rows(chosen: Filter) -> sa.Select[Any]:
    """Whole rows, in order."""
    return _ordered(sa.select(episodes), chosen)


def select_summaries(chosen: Filter) -> sa.Select[Any]:
    """Rows of `Summary`, in order."""
    return _ordered(sa.select(*_SUMMARY), chosen)


def select_count(chosen: Filter) -> sa.Select[Any]:
    """How many rows; limit and offset do not matter."""
    return _where(sa.select(sa.func.count()).select_from(episodes), chosen)


def select_beginning(prefix: str, limit: int) -> sa.Select[Any]:
    """Ids that begin so, as a range that an index answers."""
    last = prefix + "\U0010ffff"
    return sa.select(episodes.c.id).where(episodes.c.id.between(prefix, last)).limit(limit)


def select_found(text: str, limit: int, dialect: str) -> sa.Select[Any] | None:
    """Rows of `Summary` that hold all words of a text, best first; None when it has no words.

    On SQLite each word is quoted, so that nothing in it is an operator; PostgreSQL's
    `plainto_tsquery` has none.
    """
    wanted = clean(text[:_QUERY_CHARS]).split()
    if not wanted or limit <= 0:
        return None
    query = sa.select(*_SUMMARY).limit(limit)
    if dialect == "sqlite":
        quoted = " ".join('"' + word.replace('"', " ") + '"' for word in wanted)
        found = query.join_from(episodes, words, words.c.rowid == episodes.c.seq)
        match = sa.text("episodes_text MATCH :words").bindparams(words=quoted)
        return found.where(match).order_by(sa.text("episodes_text.rank"), episodes.c.seq.desc())
    bound = {"words": " ".join(wanted)}
    match = sa.text(f"{TSVECTOR} @@ {TSQUERY}").bindparams(**bound)
    best = sa.text(f"ts_rank({TSVECTOR}, {TSQUERY}) DESC, seq DESC").bindparams(**bound)
    return query.where(match).order_by(best)


def _ordered(query: sa.Select[Any], chosen: Filter) -> sa.Select[Any]:
    order = (episodes.c.created, episodes.c.seq)
    sorted_ = _where(query, chosen).order_by(
        *(column.desc() if chosen.newest_first else column.asc() for column in order)
    )
    return sorted_.limit(chosen.limit).offset(chosen.offset or None)


def _where(query: sa.Select[Any], chosen: Filter) -> sa.Select[Any]:
    column = episodes.c
    texts = (
        (column.task, chosen.task),
        (column.grp, chosen.group),
        (column.policy, chosen.policy),
        (column.status, chosen.status),
        (column.seed, None if chosen.seed is None else str(chosen.seed)),
    )
    bounds: tuple[tuple[Any, Any, Callable[[Any, Any], Any]], ...] = (
        (column.reward, chosen.reward_min, operator.ge),
        (column.reward, chosen.reward_max, operator.le),
        (column.created, chosen.since, operator.ge),
        (column.created, chosen.until, operator.lt),
    )
    return query.where(
        *(column == key(value) for column, value in texts if value is not None),
        *(holds(column, value) for column, value, holds in bounds if value is not None),
    )
