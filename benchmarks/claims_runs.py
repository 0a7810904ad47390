"""What a finished run of the claims benchmark says, and how runs are compared.

Differences are paired by question and seed; an interval is the wider of a two-way bootstrap over seeds
and questions and Student's t over seeds. See `claims.py` for the runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.stats import Interval, crossed

#: Of every run.
STEPS, TASKS, SIZE = 20, 16, 8
SMOOTH = 4  # steps whose mean is a point of a learning curve
BEFORE = "before"  # the arm that a run's first validation counts for


class Question(NamedTuple):
    """How one held-out question went.

    Attributes:
        key: of the question, the same in all runs.
        known: whether the policy was taught every fact that it needs.
        misled: whether its first search was to be; the same question was asked without that too.
        astray: whether the policy searched, and saw the bad result.
    """

    key: str
    kind: str
    answerable: bool
    known: bool
    misled: bool
    astray: bool
    right: float
    searches: float
    declined: float


class Finished(NamedTuple):
    """One run.

    Attributes:
        curve: share of right training rollouts of each step, of questions that have an answer. Those of
            plain worlds are new in each step, those of the taught one come again after 13 steps.
        questions: of the last validation.
        verdicts: share of right verdicts of each step's rollouts, by gold evidence.
    """

    arm: str
    seed: int
    curve: tuple[float, ...]
    questions: tuple[Question, ...]
    verdicts: tuple[float, ...] = ()


def finished(folder: Path) -> bool:
    """Whether a run got to its end."""
    path = folder / "report.json"
    return path.is_file() and bool(json.loads(path.read_text())["finished"])


def read_run(folder: Path, step: int = STEPS) -> Finished:
    """What a finished run left; before its first step, as the arm `before`, when `step` is 0."""
    name, _, seed = folder.name.rpartition("-")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = tuple(float(row["right_answerable"]) for row in rows)
    verdicts = tuple(float(row.get("verdicts_right", "nan")) for row in rows)
    facts = json.loads((folder / "validation" / f"step-{step:05d}.json").read_text())
    again = (facts.get("misled") or {}).get("questions", [])
    known = _known(folder)
    clean = [_question(row, known, misled=False) for row in facts["questions"]]
    questions = (*clean, *(_question(row, known, misled=True) for row in again))
    arm = f"{folder.parent.name}/{name if step else BEFORE}"
    return Finished(arm, int(seed), curve, questions, verdicts)


def require_one_type(folders: Sequence[Path]) -> None:
    """Refuse to compare runs in bfloat16 with others in float32: `native` may have changed meanwhile."""
    found: dict[str, str] = {}
    for folder in folders:
        recipe = json.loads((folder / "recipe.json").read_text())
        types = f"{recipe['update']['dtype']}, rollouts in {recipe['rollouts']['dtype']}"
        found.setdefault(types, str(folder))
    if len(found) > 1:
        told = "; ".join(f"{folder} is in {types}" for types, folder in found.items())
        raise SystemExit(f"these runs cannot be compared: {told}")


def _known(folder: Path) -> set[str]:
    """Tasks of the run's held-out worlds all of whose facts were taught."""
    found = set()
    for path in (folder / "worlds").glob("*/tasks-test.jsonl"):
        for task in map(json.loads, path.read_text().splitlines()):
            if task["meta"].get("taught") and all(task["meta"]["taught"]):
                found.add(task["id"])
    return found


def _question(row: Mapping[str, Any], known: Collection[str], misled: bool) -> Question:
    return Question(
        key=f"{row['set']}/{row['task']}",
        kind=row["kind"],
        answerable=row["answerable"],
        known=row["task"] in known,
        misled=misled,
        astray=misled and row["misled"],
        right=row["right"],
        searches=row["searches"],
        declined=row["declined"],
    )


Measure = Callable[[Question], float | None]


def right(question: Question) -> float | None:
    """Of questions that have an answer and were not misled."""
    return question.right if question.answerable and not question.misled else None


def misled_right(question: Question) -> float | None:
    """Right when the first search goes wrong, of questions that have an answer, searched or not."""
    return question.right if question.answerable and question.misled else None


def recovered(question: Question) -> float | None:
    """Right after the bad result was seen."""
    return question.right if question.answerable and question.astray else None


def searched_again(question: Question) -> float | None:
    """Whether the policy searched once more after the bad result."""
    return float(question.searches > 1) if question.answerable and question.astray else None


def right_again(question: Question) -> float | None:
    """Right, of those that searched once more."""
    return question.right if searched_again(question) else None


def declined(question: Question) -> float | None:
    """Declined although there is an answer; not misled."""
    return question.declined if question.answerable and not question.misled else None


def invented(question: Question) -> float | None:
    """An answer where there is none."""
    return None if question.answerable or question.misled else 1.0 - question.right


def searches_known(question: Question) -> float | None:
    return question.searches if question.known and not question.misled else None


def searches_unknown(question: Question) -> float | None:
    asked = question.answerable and not question.known and not question.misled
    return question.searches if asked else None


MEASURES: dict[str, Measure] = {
    "accuracy": right,
    "right when misled": misled_right,
    "recovered": recovered,
    "searched again": searched_again,
    "right, searched again": right_again,
    "declined": declined,
    "invented": invented,
    "searches, known": searches_known,
    "searches, unknown": searches_unknown,
}


def values(run: Finished, measure: Measure) -> dict[str, float]:
    """By question; those that the measure is not about are left out."""
    found = ((question.key, measure(question)) for question in run.questions)
    return {key: value for key, value in found if value is not None}


def level(runs: Sequence[Finished], measure: Measure) -> Interval | None:
    """Mean over seeds and the questions that count in all of them; None without any."""
    return _crossed([values(run, measure) for run in runs])


def difference(
    ours: Sequence[Finished], theirs: Sequence[Finished], measure: Measure
) -> Interval | None:
    """Paired by seed and question, over the seeds and questions that both have; None without any."""
    others = {run.seed: values(run, measure) for run in theirs}
    rows = []
    for run in ours:
        if (other := others.get(run.seed)) is not None:
            mine = values(run, measure)
            rows.append({key: mine[key] - other[key] for key in mine.keys() & other.keys()})
    return _crossed(rows)


def _crossed(rows: Sequence[Mapping[str, float]]) -> Interval | None:
    """The wider of the two-way bootstrap and, as three seeds say little of others, Student's t over
    the seeds' means."""
    keys = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    if not keys:
        return None
    table = np.array([[row[key] for key in keys] for row in rows])
    found = crossed(table)
    if len(rows) < 2:
        return found
    from scipy.stats import t

    means = table.mean(axis=1)
    reach = float(t.ppf(0.975, len(rows) - 1) * means.std(ddof=1) / len(rows) ** 0.5)
    low, high = min(found.low, found.mean - reach), max(found.high, found.mean + reach)
    return Interval(found.mean, low, high, found.n)


def reached(curve: Sequence[float], goal: float) -> int | None:
    """Rollouts until the mean of `SMOOTH` steps is at least `goal`; None when it never is."""
    for step in range(SMOOTH, len(curve) + 1):
        if np.mean(curve[step - SMOOTH : step]) >= goal:
            return step * TASKS * SIZE
    return None


def speed(
    ours: Sequence[Finished], theirs: Sequence[Finished]
) -> list[tuple[int, int | None, int]]:
    """Per seed: rollouts until the baseline's last smoothed accuracy, of ours and of the baseline."""
    out = []
    by_seed = {run.seed: run for run in theirs}
    for run in sorted(ours, key=lambda run: run.seed):
        if run.seed in by_seed:
            other = by_seed[run.seed].curve
            goal = float(np.mean(other[-SMOOTH:]))
            first = reached(other, goal)
            assert first is not None  # its last point is the goal
            out.append((run.seed, reached(run.curve, goal), first))
    return out
