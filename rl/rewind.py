"""A run's folder brought back to its last checkpoint: what a killed process did after it is forgotten.

Its steps are done again, with other results where an engine is not deterministic: nothing in the folder
may tell of steps that did not happen.
"""

from __future__ import annotations

from pathlib import Path

from agent.store import TrajectoryStore
from rl import run_folder
from rl.best import Best
from rl.stamp import Stamp

STORE = "trajectories.sqlite"
_NOBODY = Stamp()


def rewind(run: Path, step: int | None, stamp: Stamp = _NOBODY) -> None:
    """Forget later steps, events, validations, broken batches and episodes, and a best policy of a later
    step.

    Args:
        run: the folder; in the main process alone.
        step: of the last complete checkpoint; None where there is none, and the run begins anew.
        stamp: of the recipe.

    Raises:
        UsageError: the best policy there is another recipe's.
        StoreError: the store cannot be read or written.
    """
    after = -1 if step is None else step
    run_folder.cut(run, after)
    for path in (*(run / "validation").glob("step-*.json"), *(run / "broken").glob("step-*.pt")):
        if _step(path.stem) > after:
            path.unlink()
    Best(run, stamp).rewind(after)
    if (run / STORE).is_file():
        with TrajectoryStore.open(run / STORE) as store:
            store.delete([id for id, group in store.groups().items() if _step(group) > after])


def _step(label: str) -> int:
    """The step of `step-00012`, `step-00012-RANK` or the group `validation-00012/SET/TASK`."""
    digits = label.partition("/")[0].split("-")[1:2]
    return int(digits[0]) if digits and digits[0].isdigit() else 0
