"""The store itself: add, get, query, search, delete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent.store import query, rows
from agent.store.connection import StoreError, identity, label, make_engine, transaction
from agent.store.query import Filter, Summary
from agent.store.schema import episodes, prepare
from agent.trajectory import Trajectory, TrajectoryError
from kg.errors import UsageError

_MIN_PREFIX = 4
_LISTED = 6
_READ_AHEAD = 100
_IDS_A_STATEMENT = 500


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
        engine = make_engine(str(url))
        try:
            prepare(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TrajectoryStore({label(self._engine)!r})"

    @property
    def identity(self) -> str:
        """Which store it is, however its path was written; without a password."""
        return identity(self._engine)

    def add(self, trajectory: Trajectory) -> bool:
        """Store an episode in one transaction; False when its id is there already.

        Raises:
            StoreError: the disk is full or the server gone.
        """
        with transaction(self._engine, writes=True, failed="cannot be written") as connection:
            return connection.execute(self._insert(trajectory)).first() is not None

    def replace(self, trajectory: Trajectory) -> None:
        """Store an episode in place of one of the same id, in one transaction.

        Raises:
            StoreError: the disk is full or the server gone; what was there stays.
        """
        old = sa.delete(episodes).where(episodes.c.id == trajectory.id)
        with transaction(self._engine, writes=True, failed="cannot be written") as connection:
            connection.execute(old)
            connection.execute(self._insert(trajectory))

    def add_many(self, trajectories: Iterable[Trajectory]) -> int:
        """Store episodes, each in a transaction of its own; gives how many were new."""
        return sum(self.add(trajectory) for trajectory in trajectories)

    def get(self, id: str) -> Trajectory:
        """The episode of that id, or of the only id that begins so.

        Raises:
            UsageError: none, or several.
        """
        with transaction(self._engine) as connection:
            full = _full_id(connection, id)
            found = connection.execute(sa.select(episodes).where(episodes.c.id == full))
            return rows.unpack(found.mappings().one())

    def full_id(self, id: str) -> str:
        """The id that begins so, of an episode that need not be readable.

        Raises:
            UsageError: none, or several.
        """
        with transaction(self._engine) as connection:
            return _full_id(connection, id)

    def query(
        self, chosen: Filter | None = None, problems: list[str] | None = None
    ) -> Iterator[Trajectory]:
        """Episodes in order, read as they are asked for.

        Args:
            chosen: which; all when None.
            problems: gets a line for every damaged episode, which is then skipped.

        Raises:
            StoreError, TrajectoryError: an episode is damaged, and `problems` is None.
        """
        select = query.select_rows(chosen or Filter())
        with transaction(self._engine) as connection:
            found = connection.execution_options(yield_per=_READ_AHEAD).execute(select)
            for row in found.mappings():
                try:
                    trajectory = rows.unpack(row)
                except (StoreError, TrajectoryError) as error:
                    if problems is None:
                        raise
                    problems.append(f"{error.message}; {error.hint}".rstrip("; "))
                    continue
                yield trajectory

    def summaries(self, chosen: Filter | None = None) -> list[Summary]:
        """The same without turns and tokens."""
        return self._summaries(query.select_summaries(chosen or Filter()))

    def search(self, text: str, limit: int = 20) -> list[Summary]:
        """Episodes whose question or answer holds all words of any text, best first."""
        select = query.select_found(text, limit, self._engine.dialect.name)
        return [] if select is None else self._summaries(select)

    def count(self, chosen: Filter | None = None) -> int:
        """How many episodes a filter chooses (its limit ignored)."""
        with transaction(self._engine) as connection:
            return int(connection.execute(query.select_count(chosen or Filter())).scalar_one())

    def ids(self) -> set[str]:
        """Every id."""
        with transaction(self._engine) as connection:
            return set(connection.execute(sa.select(episodes.c.id)).scalars())

    def statuses(self) -> dict[str, str]:
        """Status of every episode by id."""
        columns = (episodes.c.id, episodes.c.status)
        with transaction(self._engine) as connection:
            return {row.id: row.status for row in connection.execute(sa.select(*columns))}

    def groups(self) -> dict[str, str]:
        """Group of every episode by id."""
        columns = (episodes.c.id, episodes.c.grp)
        with transaction(self._engine) as connection:
            return {row.id: row.grp for row in connection.execute(sa.select(*columns))}

    def keys(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Id and status of the newest episode of every group and seed."""
        columns = (episodes.c.grp, episodes.c.seed, episodes.c.id, episodes.c.status)
        with transaction(self._engine) as connection:
            found = connection.execute(sa.select(*columns).order_by(episodes.c.seq)).all()
        return {(group, int(seed)): (id, status) for group, seed, id, status in found}

    def delete(self, ids: Sequence[str]) -> int:
        """Remove episodes by full id, all or none; gives how many there were."""
        parts = [ids[i : i + _IDS_A_STATEMENT] for i in range(0, len(ids), _IDS_A_STATEMENT)]
        with transaction(self._engine, writes=True, failed="cannot be written") as connection:
            return sum(
                connection.execute(sa.delete(episodes).where(episodes.c.id.in_(part))).rowcount
                for part in parts
            )

    def set_rewards(self, id: str, rewards: Mapping[str, float]) -> None:
        """Add named rewards to an episode, or change them; others that are there stay.

        Raises:
            UsageError: no such episode.
        """
        with transaction(self._engine, writes=True, failed="cannot be written") as connection:
            here = episodes.c.id == _full_id(connection, id)
            # locked until the commit: two writers of different rewards must both count
            record = connection.execute(
                sa.select(episodes.c.record).where(here).with_for_update()
            ).scalar_one()
            changed = rows.with_rewards(record, rewards)
            connection.execute(sa.update(episodes).where(here).values(**changed))

    def _insert(self, trajectory: Trajectory) -> Any:
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        return (
            dialect.insert(episodes)
            .values(**rows.pack(trajectory))
            .on_conflict_do_nothing(index_elements=["id"])
            .returning(episodes.c.id)
        )

    def _summaries(self, select: sa.Select[Any]) -> list[Summary]:
        with transaction(self._engine) as connection:
            return [Summary(*row) for row in connection.execute(select)]


def _full_id(connection: sa.Connection, given: str) -> str:
    if len(given) < _MIN_PREFIX:
        raise UsageError(
            f"'{given}' is too short for an id: give at least {_MIN_PREFIX} characters"
        )
    found: list[str] = []
    if given.isprintable():
        exact = sa.select(episodes.c.id).where(episodes.c.id == given)
        found = list(connection.execute(exact).scalars()) or list(
            connection.execute(query.select_beginning(given, _LISTED)).scalars()
        )
    if not found:
        raise UsageError(f"no episode {given!r}", "agent trace list")
    if len(found) > 1:
        raise UsageError(f"'{given}' is the beginning of {', '.join(sorted(found))}")
    return found[0]
