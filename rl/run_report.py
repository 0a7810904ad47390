"""The report of a training run: one self-contained HTML page about what was learned and how.

Works on any run folder, also that of a run that goes on or was killed. What a policy or a document
wrote is text in the page and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from agent.store import TrajectoryStore
from agent.trajectory import Trajectory
from eval import html_page
from eval.folder import write
from eval.stats import Interval, permutation_p
from kg.errors import MissingExtraError, TurnwiseError, UsageError
from rl import run_curves
from rl.pause import turned
from rl.run_history import History, Measured, read_history
from rl.side_by_side import side_by_side
from rl.train_recipe import TrainRecipe
from rl.tripwires import difference

_SHOWN = 4
_STYLE = """
body{max-width:72rem}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin:.4rem 0 1.2rem}
.episode{border:1px solid #ccc;border-radius:4px;padding:.2rem .8rem;overflow-wrap:anywhere}
.turn{margin:.5rem 0}.turn pre{margin:.1rem 0 .1rem .8rem;color:#777}.good{color:#27703a}
.quiet{color:#777}summary{cursor:pointer}
@media(prefers-color-scheme:dark){.episode{border-color:#555}.good{color:#7c7}.bad{color:#e88}}
"""


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder; gives where.

    Without the extra `eval` the page has no plots, and says so.

    Raises:
        UsageError: the folder holds no training run, or cannot be written.
    """
    recipe = _recipe(run)
    seen = read_history(run)
    out = run / "report.html"
    write(out, _page(run, recipe, seen).encode("utf-8", "replace"))
    return out


def _page(run: Path, recipe: dict[str, Any], seen: History) -> str:
    title = f"Training of {recipe.get('base', '?')}"
    body = [
        f"<h1>{escape(title)}</h1><p>{escape(_facts(run, recipe, seen))}</p>",
        _events(seen),
        _validations(seen),
        _curves(seen),
        _changed(run, seen),
        f"<h2>Recipe</h2><p>digest {escape(_digest(recipe))}</p>"
        f"<pre>{escape(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))}</pre>",
    ]
    return html_page.page(title, "".join(body), _STYLE)


def _recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.json"
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            return found
        problem = "not a recipe"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise UsageError(f"{run} is not a training run: {path.name}: {problem}", "agent train RECIPE")


def _digest(recipe: dict[str, Any]) -> str:
    try:
        return TrainRecipe.model_validate(recipe).digest
    except (ValidationError, TurnwiseError):
        return "unknown: the recipe is of another version"


def _facts(run: Path, recipe: dict[str, Any], seen: History) -> str:
    """One line: how far, how it ended, how long it took."""
    seconds = sum(step.get("seconds", 0.0) for step in seen.steps)
    sampled = sum(seen.values("sampled_tokens"))
    return (
        f"{seen.step} of {recipe.get('steps', '?')} steps, {_state(run, seen)}; "
        f"{seconds / 60:.1f} minutes of steps, {sampled:,.0f} tokens sampled."
    )


def _state(run: Path, seen: History) -> str:
    if any(event.kind == "tripwire" and event.step == seen.step for event in seen.events):
        return "paused by a tripwire"
    try:
        told = json.loads((run / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "not finished"
    if told.get("steps") != seen.step:  # of an earlier end: the run went on
        return "not finished"
    return "finished" if told.get("finished") else "interrupted"


def _events(seen: History) -> str:
    skipped = [int(one["step"]) for one in seen.steps if one.get("skipped", 0) > 0]
    silent = [int(one["step"]) for one in seen.steps if one.get("passes") == 0]
    rows = [(str(event.step), event.kind, event.text) for event in seen.events]
    told = {event.step for event in seen.events if event.kind == "skipped"} | set(silent)
    rows += [
        (str(step), "skipped", "an update changed nothing") for step in skipped if step not in told
    ]
    rows += [
        (str(step), "skipped", "no rollout was better than another: nothing to learn from")
        for step in silent
    ]
    if not rows:
        return "<h2>Events</h2><p>None: no step was skipped, no tripwire, no failed checkpoint.</p>"
    rows.sort(key=lambda row: int(row[0]))
    return f"<h2>Events</h2>{html_page.table(('step', 'what', 'said'), rows)}"


def _validations(seen: History) -> str:
    """Before and after by kind, and the paired difference."""
    if not seen.validations:
        return "<h2>Validation</h2><p>The policy was not validated.</p>"
    first, best, last = seen.validations[0], seen.best or seen.validations[0], seen.validations[-1]
    columns = [("first", first), ("best", best), ("last", last)]
    head = ("answered rightly, %", "n", *(f"{name} (step {one.step})" for name, one in columns))
    kinds = list(dict.fromkeys(kind for _, one in columns for kind in one.kinds))
    rows = [("all", str(first.right.n), *(_interval(one.right) for _, one in columns))]
    if any(one.figures.get("errors", 0) > 0 for _, one in columns):
        rows.append(("without errors", "", *(_interval(one.without_errors) for _, one in columns)))
    rows += [
        (
            kind or "-",
            str(first.kinds[kind].n if kind in first.kinds else ""),
            *(_interval(one.kinds.get(kind)) for _, one in columns),
        )
        for kind in kinds
    ]
    return (
        f"<h2>Validation</h2>{html_page.table(head, rows)}"
        f"{_differences(first, best, last)}{_behaviour(columns)}"
    )


def _differences(first: Measured, best: Measured, last: Measured) -> str:
    others = {one.step: (name, one) for name, one in (("best", best), ("last", last))}
    rows = [
        (f"{name} (step {one.step}) - first", *_difference(one, first))
        for name, one in others.values()
        if one.step != first.step
    ]
    if not rows:
        return "<p>No later validation is better than the first, and none is compared with it.</p>"
    return (
        html_page.table(("paired difference, points", "95 % interval", "n", "p"), rows)
        + '<p class="quiet">Paired by question: bootstrap interval, permutation p. The best step was '
        "chosen by these same questions, so that its difference is a little flattering; the last "
        "one's is not.</p>"
    )


def _difference(one: Measured, first: Measured) -> tuple[str, str, str]:
    found = difference(one, first)
    both = one.questions.keys() & first.questions.keys()
    if not both:
        return _interval(found), f"{found.n} (not paired)", ""
    ours, theirs = ([side.questions[key].right for key in sorted(both)] for side in (one, first))
    return _interval(found), str(len(both)), f"{permutation_p(ours, theirs):.4f}"


def _behaviour(columns: Sequence[tuple[str, Measured]]) -> str:
    rows = []
    for name in columns[0][1].figures:
        percent = name not in ("searches", "turns")
        cells = [(100 if percent else 1) * one.figures.get(name, math.nan) for _, one in columns]
        words = f"{_WORDS.get(name, name)}, %" if percent else name
        rows.append((words, *("" if cell != cell else f"{cell:.1f}" for cell in cells)))
    return html_page.table(("", *(name for name, _ in columns)), rows)


_WORDS = {"misled": "right when the first search misleads", "recovered": "right once it misled"}


def _interval(value: Interval | None) -> str:
    return "" if value is None else str(value).strip()


def _curves(seen: History) -> str:
    if not seen.steps and not seen.validations:
        return ""
    try:
        drawn = run_curves.draw(seen)
    except MissingExtraError as error:
        return f"<h2>Curves</h2><p>{escape(error.message)}: {escape(error.hint)}</p>"
    zero = run_curves.always_zero(seen)
    said = f"<p>0 in every step: {escape(', '.join(zero))}.</p>" if zero else ""
    return "<h2>Curves</h2>" + "".join(f"<figure>{svg}</figure>" for svg in drawn) + said


def _changed(run: Path, seen: History) -> str:
    """Validation questions that became right or wrong, with both episodes."""
    if len(seen.validations) < 2 or not (run / "trajectories.sqlite").is_file():
        return ""
    first, best, last = seen.validations[0], seen.best, seen.validations[-1]
    after = best if best is not None and best.step != first.step else last
    head = f"<h2>The same questions at step {first.step} and at step {after.step}</h2>"
    if not first.questions or not after.questions:
        return f"{head}<p>Which episode belongs to which question was not written down.</p>"
    parts = [head]
    with TrajectoryStore.open(run / "trajectories.sqlite") as store:
        for right, words in ((True, "From wrong to right"), (False, "From right to wrong")):
            found = turned(first, after, right)
            shown = f", {_SHOWN} of them shown" if len(found) > _SHOWN else ""
            parts.append(f"<h3>{words}: {len(found)}{shown}</h3>")
            parts += [_pair(store, *one, right) for one in _spread(found)]
    return "".join(parts)


def _spread(found: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """A few, evenly over all: neighbours are often of one kind."""
    step = max(1, len(found) // _SHOWN)
    return list(found[::step][:_SHOWN])


def _pair(store: TrajectoryStore, name: str, before: str, after: str, right: bool) -> str:
    try:
        episodes: tuple[Trajectory, Trajectory] = (store.get(before), store.get(after))
    except TurnwiseError as error:
        return f"<p>{escape(name)}: {escape(error.message)}</p>"
    return side_by_side(name, *episodes, right)
