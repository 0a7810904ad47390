"""The policy of a run that validated best, kept so that a kill never leaves one of steps to come.

`best/` is a model folder with its step in `step.json`. Until a checkpoint includes it, the one before is
kept beside it; a run that goes on from the checkpoint before takes that one back.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kg.errors import UsageError
from rl import ranks, run_folder

STEP = "step.json"


class Best:
    """The best policy of one run folder; only the main process changes it.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "best"
        self._saved = run / ".best.saved"

    @property
    def step(self) -> int | None:
        """The step that the folder is of; None where there is none, or it does not tell."""
        return _step(self.folder)

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
        run_folder.copy(policy, self.folder, {STEP: {"step": step}})

    def commit(self) -> None:
        """A checkpoint includes the best: the one before is not needed any more."""
        if ranks.is_main():
            shutil.rmtree(self._saved, ignore_errors=True)

    def rewind(self, after: int) -> None:
        """Go back to the best one of the steps up to `after`, that of the last checkpoint."""
        if not ranks.is_main():
            return
        if self.step is not None and self.step <= after:
            self.commit()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        before = _step(self._saved)
        if before is not None and before <= after:
            self._saved.rename(self.folder)
        self.commit()


def _step(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / STEP).read_text("utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
