"""The policy of a run that validated best, kept so that a kill never leaves one of steps to come.

`best/` is a model folder; `step.json` in it holds its step and the digest of the recipe. Until a
checkpoint includes it, the one before is kept beside it; a run that goes on from the checkpoint before
takes that one back.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kg.errors import UsageError
from rl import ranks, run_folder
from rl.stamp import Stamp

STEP = "step.json"
_NOBODY = Stamp()


class Best:
    """The best policy of one run folder; only the main process changes it.

    Args:
        run: the run's folder.
        stamp: of the recipe; it is kept beside the step.
    """

    def __init__(self, run: Path, stamp: Stamp = _NOBODY) -> None:
        self.folder = run / "best"
        self._saved, self._stamp = run / ".best.saved", stamp

    @property
    def step(self) -> int | None:
        """The step that the folder is of; None where there is none, or it does not tell."""
        return _step(self.folder)

    @property
    def recipe(self) -> str:
        """Digest of the recipe that made it; empty where it does not tell."""
        return str(_facts(self.folder).get("recipe", ""))

    def take(self, policy: Path, step: int) -> None:
        """Make a copy of `policy` the best.

        Raises:
            UsageError: it cannot be written.
        """
        if not ranks.is_main():
            return
        try:
            if self.folder.is_dir() and not self._saved.is_dir():
                self.folder.rename(self._saved)
        except OSError as error:
            raise UsageError(f"cannot move {self.folder}: {error.strerror}") from error
        run_folder.copy(policy, self.folder, {STEP: {"step": step, **self._stamp.facts}})

    def commit(self) -> None:
        """A checkpoint includes the best: the one before is not needed any more."""
        if ranks.is_main():
            shutil.rmtree(self._saved, ignore_errors=True)

    def rewind(self, after: int) -> None:
        """Go back to the best one of the steps up to `after`, that of the last checkpoint.

        Raises:
            UsageError: the best is another recipe's.
        """
        if not ranks.is_main():
            return
        self._stamp.require(_facts(self.folder), self.folder)
        if self.step is not None and self.step <= after:
            self.commit()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        before = _step(self._saved)
        if before is not None and before <= after:
            self._saved.rename(self.folder)
        self.commit()


def _step(folder: Path) -> int | None:
    step = _facts(folder).get("step")
    return step if isinstance(step, int) else None


def _facts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / STEP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
