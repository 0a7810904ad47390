"""What `agent train` and `agent export` run: plain values in, text for stdout out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from agent.settings import Settings
from kg.console import stderr
from kg.errors import UsageError
from kg.strict_json import finite
from rl import ranks
from rl.observer import Silent
from rl.train_recipe import TrainRecipe, load_train

if TYPE_CHECKING:
    from rl.dashboard import Dashboard

Notify = Callable[[str], None]


def trained(
    name: str,
    overrides: Sequence[str],
    run: Path,
    data: str,
    ignore: Sequence[str],
    settings: Settings,
    as_json: bool,
    peak_tflops: float = 0.0,
) -> tuple[str, bool]:
    """Carry out a recipe; see `rl.loop.train`. Gives the report, "" in all processes but the main one,
    and whether Ctrl-C ended the run.

    Raises:
        TurnwiseError: as `rl.loop.train`.
    """
    recipe = load_train(name, overrides)
    from rl.loop import train
    from rl.precision import settled

    recipe = settled(recipe, run)

    if ranks.is_main():
        stderr(resolved_text(recipe))
    with watcher_of(run) as watcher:
        report = train(recipe, settings, run, watcher, data, ignore, peak_tflops)
    if not ranks.is_main():
        return "", report.interrupted
    facts = {**finite(asdict(report)), "out": str(report.out), "recipe": recipe.digest}
    if as_json:
        return json.dumps(facts), report.interrupted
    lines = {
        "policy": report.out,
        "steps": f"{report.steps} of {recipe.steps}",
        "validation": f"{report.first.strip()} → {report.last.strip()}, best {report.best.strip()}"
        if report.first
        else "none",
        "report": run / "report.html",
    }
    return "\n".join(f"{key:<11} {value}" for key, value in lines.items()), report.interrupted


def watcher_of(run: Path) -> Dashboard | Silent:
    """Who shows a run: one process of it does, the others say nothing."""
    from rl.dashboard import Dashboard

    return Dashboard(run) if ranks.is_main() else Silent()


def resolved_text(recipe: TrainRecipe) -> str:
    """The recipe with every default filled in, as YAML, under its digest."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)
    return f"# recipe {recipe.digest}\n{text}"


def retrained(
    name: str,
    overrides: Sequence[str],
    run: Path,
    url: str,
    way: str,
    wanted: Mapping[str, Any],
    settings: Settings,
    as_json: bool,
    notify: Notify,
) -> tuple[str, bool]:
    """Train on logged episodes; see `rl.retrain.retrain`. Gives the report, "" in all processes but the
    main one, and whether Ctrl-C ended the run.

    Raises:
        UsageError: an option that is none, or nothing to train on.
    """
    recipe = load_train(name, overrides)
    from rl.logged import Wanted
    from rl.retrain import Way, retrain

    try:
        chosen: Way = TypeAdapter(Way).validate_python(way)
        limits = Wanted(**wanted)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "way"
        raise UsageError(f"--{where}: {problem['msg']}") from error
    report = retrain(url, recipe, settings, run, chosen, limits, notify=notify)
    if not ranks.is_main():
        return "", report.interrupted
    facts = {**finite(asdict(report)), "out": str(report.out)}
    if as_json:
        return json.dumps(facts), report.interrupted
    done = "finished" if report.finished else "not finished"
    left = "".join(f"\n  {count:>6} {why}" for why, count in report.left_out.items())
    text = (
        f"policy {report.out}\n{report.used} of {report.episodes} episodes used, {report.corrected} of "
        f"them corrected, {report.silent} without a difference, {report.unreadable} rows unreadable, "
        f"{report.steps} steps, {done}{left}"
    )
    return text, report.interrupted


def exported(
    run: Path,
    out: Path,
    last: bool,
    adapter: bool,
    settings: Settings,
    as_json: bool,
    notify: Notify,
) -> str:
    """Write a run's policy; see `rl.export.export`.

    Raises:
        TurnwiseError: as `rl.export.export`.
    """
    from rl.export import export

    report = export(run, out, settings, "last" if last else "best", adapter, notify)
    if as_json:
        return json.dumps({**asdict(report), "out": str(report.out)})
    step = "" if report.step is None else f", of step {report.step}"
    return f"{report.kind} weights {report.version}{step}: {report.out}"
