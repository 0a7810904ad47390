"""A run's folder brought back to its last checkpoint: what a killed process did after it is forgotten.

Its steps are done again, with other results where an engine is not deterministic: nothing in the folder
may tell of steps that did not happen.
"""

from __future__ import annotations

from pathlib import Path

from agent.store import TrajectoryStore
from rl import run_folder
from rl.best import Best

STORE = "trajectories.sqlite"


def rewind(run: Path, step: int | None) -> None:
    """Forget later steps, events, validations and episodes, and a best policy of a later step.

    Args:
        run: the folder; in the main process alone.
        step: of the last complete checkpoint; None where there is none, and the run begins anew.

    Raises:
        StoreError: the store cannot be read or written.
    """
    after = -1 if step is None else step
    run_folder.cut(run, after)
    for path in (run / "validation").glob("step-*.json"):
        if _number(path.stem) > after:
            path.unlink()
    Best(run).rewind(after)
    if (run / STORE).is_file():
        with TrajectoryStore.open(run / STORE) as store:
            store.delete([t.id for t in store.query(problems=[]) if _step_of(t.group) > after])


def _step_of(group: str) -> int:
    """The step that a group of the run's store belongs to: `step-00012/SET/TASK`."""
    return _number(group.partition("/")[0])


def _number(label: str) -> int:
    digits = label.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
