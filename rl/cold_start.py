"""`agent sft`: from a recipe to a trained adapter, demonstrations included.

Demonstrations are written to the run folder first, so that an interrupted run goes on with the same
ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.corpus_index import index_of
from agent.exchange import read, write
from agent.policies.catalog import resolve
from agent.policies.chat import ChatTemplate
from agent.settings import Settings
from eval.benchmarks import Benchmark, DataFolder
from kg.errors import UsageError
from kg.strict_json import finite
from rl import ranks
from rl.recipe import Fit, SftRecipe, load_pretrain, load_sft
from rl.run_folder import claim

if TYPE_CHECKING:
    from eval.stats import Interval
    from rl.fit import FitReport, StepReport

Notify = Callable[[str], None]


def run(
    recipe_name: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
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
    _require(recipe, demonstrations, data)
    base = resolve(recipe.base, settings.models_dir, notify)
    # torch and DeepSpeed, after the input is known to be good
    from rl.precision import settled

    recipe = settled(recipe, out)
    notify(f"training in {recipe.dtype}")
    claim(out, recipe, recipe.free)
    files = list(demonstrations) or [
        ranks.main_first(lambda: _demonstrated(recipe, base, out, data, settings, notify))
    ]
    from rl.sft import train

    problems: list[str] = []
    found = (trajectory for file in files for trajectory in read(file, problems))
    report = train(recipe, base, found, out, _told(notify))
    for problem in problems:
        notify(f"skipped: {problem}")
    return _facts(report, recipe)


def _require(recipe: SftRecipe, demonstrations: Sequence[Path], data: str | None) -> None:
    """What the recipe needs, before anything is made."""
    if recipe.init and not (Path(recipe.init) / "adapter_config.json").is_file():
        raise UsageError(f"init: {recipe.init} holds no adapter", "give the folder of an adapter")
    if demonstrations:
        return
    if recipe.demonstrations is None:
        raise UsageError("the recipe makes no demonstrations", "add --demonstrations FILE")
    if recipe.demonstrations.sources and data is None:
        raise UsageError("demonstrations are made from data", "add --data DIR or set AGENT_DATA")


def _demonstrated(
    recipe: SftRecipe,
    base: Path,
    out: Path,
    data: str | None,
    settings: Settings,
    notify: Notify,
) -> Path:
    """The file of demonstrations in the run folder, made when it is not there."""
    path = out / "demonstrations.jsonl.gz"
    if path.is_file():
        return path
    assert recipe.demonstrations is not None
    from rl.guidance.demonstrations import demonstrate, demonstrate_worlds
    from rl.guidance.lessons import teach_worlds

    def indexer(benchmark: Benchmark) -> Path:
        return index_of(benchmark.corpus, settings.indexes_dir, notify)

    notify("playing demonstrations")
    wanted, template = recipe.demonstrations, ChatTemplate.load(base)
    folder = DataFolder(data or "", settings.benchmarks_dir)
    found = chain(
        demonstrate(wanted, folder, template, indexer, settings.search, recipe.seed),
        demonstrate_worlds(wanted, out / "worlds", template, settings.search, recipe.seed),
        teach_worlds(wanted, out / "worlds", template, settings.search, recipe.seed),
    )
    count = write(path, found)
    notify(f"{count} demonstrations in {path}")
    return path


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def run_pretraining(
    recipe_name: str, overrides: Sequence[str], out: Path, notify: Notify = lambda line: None
) -> dict[str, Any]:
    """Carry out a pre-training recipe; gives the report that is also written to `out/report.json`.

    Raises:
        TurnwiseError: as the parts raise.
    """
    recipe = load_pretrain(recipe_name, overrides)
    from agent.policies.transformers import TransformersPolicy
    from rl.precision import settled
    from rl.pretrain import copied, pretrain

    recipe = settled(recipe, out)
    notify(f"training in {recipe.dtype}")
    report = pretrain(recipe, out, _told(notify), notify)
    if not ranks.is_main():
        return _facts(report, recipe)
    notify("asking a world that it has not read")
    unread = recipe.worlds.first_seed + recipe.worlds.count

    async def asked() -> Interval:
        policy = TransformersPolicy(report.out, dtype="float32")
        try:
            return await copied(policy, recipe, unread)
        finally:
            await policy.aclose()

    found = asyncio.run(asked())
    return {**_facts(report, recipe), "copied": asdict(found)}


def _facts(report: FitReport, recipe: Fit) -> dict[str, Any]:
    facts: dict[str, Any] = finite(asdict(report))
    return {**facts, "out": str(report.out), "recipe": recipe.digest}


def _told(notify: Notify) -> Callable[[StepReport], None]:
    """Progress as lines."""

    def progress(step: StepReport) -> None:
        notify(
            f"step {step.step}/{step.steps}  loss {step.loss:.4f}  lr {step.lr:.2e}  "
            f"{step.tokens_per_second:,.0f} tokens/s  "
            f"{_clock(step.seconds)} elapsed, {_clock(step.eta)} to go"
        )

    return progress
