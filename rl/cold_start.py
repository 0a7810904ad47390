"""`agent sft`: from a recipe to a trained adapter, demonstrations included.

Demonstrations are written to the run folder first, so that an interrupted run goes on with the same
ones.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.policies.catalog import resolve
from agent.policies.chat import ChatTemplate
from agent.settings import Settings
from agent.toolbox import index_of
from agent.trajectory import Trajectory, TrajectoryError
from eval.benchmarks import Benchmark
from kg.errors import UsageError
from rl.recipe import SftRecipe, load_sft

Notify = Callable[[str], None]


def run(
    recipe_name: str,
    overrides: Sequence[str],
    out: Path,
    data: Path | None,
    demonstrations: Sequence[Path],
    settings: Settings,
    notify: Notify = lambda line: None,
) -> dict[str, Any]:
    """Carry out a recipe; gives the report that is also written to `out/report.json`.

    Raises:
        UsageError: no demonstrations and no data to make them from.
        TurnwiseError: as the parts raise.
    """
    recipe = load_sft(recipe_name, overrides)
    base = resolve(recipe.base, settings.models_dir, notify)
    files = list(demonstrations) or [_demonstrated(recipe, base, out, data, settings, notify)]
    from rl.sft import StepReport, train  # torch and DeepSpeed, after the input is known to be good

    def progress(step: StepReport) -> None:
        notify(
            f"step {step.step}/{step.steps}  loss {step.loss:.4f}  lr {step.lr:.2e}  "
            f"{step.tokens_per_second:,.0f} tokens/s  "
            f"{_clock(step.seconds)} elapsed, {_clock(step.eta)} to go"
        )

    report = train(recipe, base, read_all(files, notify), out, progress)
    return {**asdict(report), "out": str(report.out), "recipe": recipe.digest}


def _demonstrated(
    recipe: SftRecipe,
    base: Path,
    out: Path,
    data: Path | None,
    settings: Settings,
    notify: Notify,
) -> Path:
    """The file of demonstrations in the run folder, made when it is not there."""
    path = out / "demonstrations.jsonl.gz"
    if path.is_file():
        return path
    if recipe.demonstrations is None:
        raise UsageError("the recipe makes no demonstrations", "add --demonstrations FILE")
    if data is None:
        raise UsageError("demonstrations are made from data", "add --data DIR or set AGENT_DATA")
    from rl.guidance.demonstrations import demonstrate

    def indexer(benchmark: Benchmark) -> Path:
        return index_of(benchmark.corpus, settings.indexes_dir, notify)

    notify("playing demonstrations")
    found = demonstrate(
        recipe.demonstrations, data, ChatTemplate.load(base), indexer, settings.search, recipe.seed
    )
    count = write_all(path, found)
    notify(f"{count} demonstrations in {path}")
    return path


def write_all(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories as gzip JSONL, atomically; gives their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_suffix(".part"), 0
    with gzip.open(partial, "wt", encoding="utf-8") as lines:
        for trajectory in trajectories:
            lines.write(json.dumps(trajectory.to_dict()) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def read_all(paths: Sequence[Path], notify: Notify) -> Iterator[Trajectory]:
    """Trajectories of JSONL files; bad lines are reported with their number, skipped and counted.

    Raises:
        UsageError: a file does not exist.
    """
    bad = 0
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist", "check --demonstrations")
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Trajectory.from_dict(json.loads(line))
                except (ValueError, TrajectoryError) as error:
                    bad += 1
                    notify(f"{path}:{number}: skipped: {error}")
    if bad:
        notify(f"{bad} bad lines skipped")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
