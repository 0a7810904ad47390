"""The conversations on disk, looked at without a model: LangGraph's checkpoints in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from agent.store import StoreError, TrajectoryStore
from agent.store.write_ahead import BUSY_SECONDS
from agent.trajectory import TrajectoryError
from kg.errors import UsageError


def forget(store: TrajectoryStore, ids: Iterable[str], path: Path) -> int:
    """Delete episodes, damaged ones too, and the conversations they belong to; a conversation's
    checkpoints hold all its questions.

    Args:
        store: where the episodes are.
        ids: of episodes; the beginning of an id is enough.
        path: the checkpoint file.

    Returns:
        How many episodes were deleted.

    Raises:
        UsageError: an id that no episode has, or that several begin with; nothing is deleted.
    """
    full = [store.full_id(id) for id in ids]
    threads: set[str] = set()
    for id in full:
        with suppress(StoreError, TrajectoryError):  # a damaged row does not tell its conversation
            threads.add(str(store.get(id).task.meta.get("thread", "")))
    Threads(path).forget(threads - {""})
    return store.delete(full)


class Threads:
    """The threads of a checkpoint file; a file that is not there holds none.

    Raises (every method):
        UsageError: the file is no checkpoint file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def latest(self) -> str | None:
        """Id of the thread that was used last."""
        found = self._rows("SELECT thread_id FROM checkpoints ORDER BY checkpoint_id DESC LIMIT 1")
        return found[0] if found else None

    def has(self, thread: str) -> bool:
        """Whether a thread has any checkpoint."""
        return bool(self._rows("SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1", thread))

    def ids(self) -> set[str]:
        """Every thread."""
        return set(self._rows("SELECT DISTINCT thread_id FROM checkpoints"))

    def forget(self, threads: Iterable[str]) -> None:
        """Remove threads with all their checkpoints."""
        if not self.path.is_file():
            return
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as file, file:
                for thread in threads:
                    file.execute("DELETE FROM writes WHERE thread_id = ?", (thread,))
                    file.execute("DELETE FROM checkpoints WHERE thread_id = ?", (thread,))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _rows(self, query: str, *values: str) -> list[str]:
        if not self.path.is_file():
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as file:
                return [str(row[0]) for row in file.execute(query, values)]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # a file that was made and never written
                return []
            raise self._broken(error) from error
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: sqlite3.Error) -> UsageError:
        return UsageError(
            f"the conversation file {self.path} cannot be read: {error}",
            "move it away, or set AGENT_HOME to another folder",
        )
