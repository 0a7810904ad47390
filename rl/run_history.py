"""What a run folder tells of its run so far: steps, validations and events, as plain values.

Reads any run folder, also that of a run that goes on, was killed or was made by an older version: what
is missing is empty, a line that cannot be read is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.stats import Interval
from rl import run_folder

Metrics = dict[str, float]


@dataclass(frozen=True)
class Asked:
    """One question of a validation.

    Attributes:
        kind: of question.
        right: 0 to 1.
        episode: id in the run's store.
    """

    kind: str
    right: float
    episode: str


@dataclass(frozen=True)
class Measured:
    """One validation, as its file tells it.

    Attributes:
        step: updates done.
        right: share answered rightly.
        kinds: the same by kind of question.
        figures: `searches`, `turns`, `wrong`, `declined`, `hallucinated`, `errors` (a count); NaN where
            not known. Where it was measured, `misled`: share answered rightly when the first search goes
            wrong, and `recovered`: that of the answerable ones whose search did.
        questions: by `SET/TASK`; empty in a folder of an older version.
        without_errors: `right` over the episodes that did not end in an error; None where not known.
    """

    step: int
    right: Interval
    kinds: dict[str, Interval]
    figures: dict[str, float]
    questions: dict[str, Asked]
    without_errors: Interval | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        kind: `skipped`, `checkpoint` or `tripwire`.
    """

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class History:
    """A run so far, by step.

    Attributes:
        steps: as in `metrics.jsonl`, null as NaN.
    """

    steps: tuple[Metrics, ...] = ()
    validations: tuple[Measured, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def step(self) -> int:
        """The last step that was done; 0 before the first."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def best(self) -> Measured | None:
        """The validation with the most right, the earliest of equals; None without any."""
        return max(self.validations, key=lambda one: one.right.mean, default=None)

    def values(self, name: str) -> list[float]:
        """The numbers of a metric in order; steps without one are left out."""
        found = (step.get(name, math.nan) for step in self.steps)
        return [value for value in found if math.isfinite(value)]


def read_history(run: Path) -> History:
    """The history in a run folder.

    Validations after the last step are those of a killed process, whose steps will be done again: they
    are left out.
    """
    steps = tuple(_numbers(line) for line in run_folder.lines(run / run_folder.METRICS))
    last = int(steps[-1]["step"]) if steps else 0
    found = (_measured(path) for path in sorted((run / "validation").glob("step-*.json")))
    events = [
        Event(line["step"], str(line.get("kind")), str(line.get("text")))
        for line in run_folder.lines(run / run_folder.EVENTS)
    ]
    validations = tuple(one for one in found if one is not None and one.step <= last)
    return History(steps, validations, tuple(events))


def _numbers(line: Mapping[str, Any]) -> Metrics:
    return {
        name: math.nan if value is None else float(value)
        for name, value in line.items()
        if value is None or isinstance(value, int | float)
    }


def _measured(path: Path) -> Measured | None:
    """A validation; None when its file is damaged."""
    try:
        facts = json.loads(path.read_text("utf-8"))
        asked = {
            f"{one['set']}/{one['task']}": Asked(one["kind"], one["right"], one["episode"])
            for one in facts.get("questions", [])
            if one["right"] is not None
        }
        kinds = {kind: Interval(**value) for kind, value in facts["kinds"].items()}
        figures = {
            name: math.nan if facts.get(name) is None else float(facts[name]) for name in _FIGURES
        }
        if astray := facts.get("misled"):
            again = (astray["recovered"] or {}).get("mean", math.nan)
            figures |= {"misled": astray["right"]["mean"], "recovered": again}
        told = facts.get("without_errors")
        whole = Interval(**told) if told else None
        right = Interval(**facts["right"])
        return Measured(int(facts["step"]), right, kinds, figures, asked, whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_FIGURES = ("searches", "turns", "wrong", "declined", "hallucinated", "errors")
