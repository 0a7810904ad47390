"""The passages of an index in one SQLite file, read lazily by row number.

Rows count from 0 in the order of the passage ids, so that a tie between equal scores is broken by
id wherever it is broken by row. A written file never changes: readers open it as immutable.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tools.search.passages import Passage

_ROWS = "SELECT row, id, document, title, text, source FROM passages"
_NUMBER = (
    "INSERT INTO passages SELECT row_number() OVER (ORDER BY id) - 1, id, document, title, text,"
    " source FROM staged ORDER BY id"
)
_PASSAGES = "CREATE TABLE passages (row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, document TEXT"
_PASSAGES += " NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, source TEXT NOT NULL)"
# SQLite allows at least this many parameters in one statement in every version still in use.
_MAX_PARAMETERS = 500


class PassageWriter:
    """Collects passages in any order, then numbers them by id.

    Args:
        path: the SQLite file; one that is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE documents (id TEXT PRIMARY KEY, kept INTEGER) WITHOUT ROWID")
        self._db.execute(
            "CREATE TABLE staged (id TEXT PRIMARY KEY, document TEXT, title TEXT, text TEXT,"
            " source TEXT) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._db.close()

    def has_document(self, document: str) -> bool:
        """Whether a document of this id was added (not kept)."""
        found = self._db.execute("SELECT 1 FROM documents WHERE id = ? AND kept = 0", (document,))
        return found.fetchone() is not None

    def add(self, passages: Sequence[Passage]) -> bool:
        """Stage one document's passages; False when its id, or one of theirs, is taken."""
        document = passages[0].document
        if self.has_document(document) or any(self._has_passage(p.id) for p in passages):
            return False
        self._db.execute("INSERT INTO documents VALUES (?, 0)", (document,))
        self._db.executemany(
            "INSERT INTO staged VALUES (?, ?, ?, ?, ?)",
            ((p.id, p.document, p.title, p.text, p.source) for p in passages),
        )
        return True

    def _has_passage(self, name: str) -> bool:
        found = self._db.execute("SELECT 1 FROM staged WHERE id = ?", (name,))
        return found.fetchone() is not None

    def keep(self, passage: Passage) -> bool:
        """Stage a passage of an earlier index; False when its id was added since."""
        p = passage
        self._db.execute("INSERT OR IGNORE INTO documents VALUES (?, 1)", (p.document,))
        done = self._db.execute(
            "INSERT OR IGNORE INTO staged VALUES (?, ?, ?, ?, ?)",
            (p.id, p.document, p.title, p.text, p.source),
        )
        return done.rowcount == 1

    def finish(self) -> int:
        """Number the passages by id and write the file; returns how many documents it holds."""
        documents: int = self._db.execute("SELECT count(*) FROM documents").fetchone()[0]
        self._db.execute(_PASSAGES)
        self._db.execute(_NUMBER)
        self._db.execute("DROP TABLE staged")
        self._db.execute("DROP TABLE documents")
        self._db.execute("CREATE INDEX passages_document ON passages (document)")
        self._db.execute("COMMIT")
        self._db.execute("VACUUM")
        return documents


class PassageStore:
    """Reads passages by row; safe to call from several threads.

    Raises:
        sqlite3.Error: from any method, when the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self._lock = threading.Lock()
        self._count = int(self._db.execute("SELECT count(*) FROM passages").fetchone()[0])

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def rows(self, rows: Sequence[int]) -> list[Passage]:
        """The passages at `rows`, in that order."""
        found: dict[int, Passage] = {}
        with self._lock:
            for start in range(0, len(rows), _MAX_PARAMETERS):
                some = [int(row) for row in rows[start : start + _MAX_PARAMETERS]]
                marks = ",".join("?" * len(some))
                for row, *values in self._db.execute(f"{_ROWS} WHERE row IN ({marks})", some):
                    found[row] = Passage(*values)
        return [found[int(row)] for row in rows]

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, self._count, _MAX_PARAMETERS):
            yield from self.rows(range(start, min(start + _MAX_PARAMETERS, self._count)))

    def matching(self, ids: Iterable[str]) -> dict[str, list[str]]:
        """For each id of a passage or document: the ids of the passages it stands for."""
        with self._lock:
            return {
                name: [
                    row[0]
                    for row in self._db.execute(
                        "SELECT id FROM passages WHERE id = ? OR document = ? ORDER BY row",
                        (name, name),
                    )
                ]
                for name in ids
            }
