"""From a run's folder to a folder that other programs load: `agent ask`, `vllm serve`, transformers.

It holds the weights (whole, or an adapter), tokenizer and chat template; `agent.toml` with the settings
that the policy was trained under; `recipe.json`; and a model card with data, scores and licence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import yaml

from agent.policies.catalog import CATALOG, DEFAULT, adapter_behind, resolve
from agent.policies.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_base, merge_adapter
from agent.policies.model_folder import is_model_folder, weights_version
from agent.policies.stacking import stack
from agent.settings import Settings, isolated_settings
from kg.errors import UsageError
from rl import run_folder
from rl.best import Best
from rl.model_files import ADAPTER, copy_tokenizer, require_base

Notify = Callable[[str], None]
Which = Literal["best", "last"]

_LICENCES = {"micro": "Apache-2.0", DEFAULT: "Apache-2.0"}
_SETTINGS = (
    "format", "tools", "rule", "tool_seconds", "observation_chars", "system",
    "budgets", "sampling", "search",
)  # fmt: skip
_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        out: the folder.
        kind: `merged` or `adapter`.
        version: digest of the weights; that of the adapter's for an adapter.
        step: of the weights; None where the run does not tell.
    """

    out: Path
    kind: str
    version: str
    step: int | None


def export(
    run: Path,
    out: Path,
    settings: Settings,
    which: Which = "best",
    adapter: bool = False,
    notify: Notify = lambda line: None,
) -> ExportReport:
    """Write the policy of a run as a folder of its own.

    Args:
        run: of `agent train`, `agent train --from-store` or `agent sft`.
        out: the new folder; must not be there, or be empty.
        settings: of this machine: folder of models.
        which: the weights that validated best, or the last ones.
        adapter: a peft adapter instead of whole weights; of a run that trained one.
        notify: gets one line a stage.

    Raises:
        UsageError: no run, nothing to export, or `out` cannot be written.
        PolicyUnavailableError: the base, which an adapter is merged into, cannot be had.
    """
    recipe = _json(run / "recipe.json", "is no folder of a run: it has no recipe.json")
    source, step = _source(run, which)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "choose another --out, or remove it")
    partial = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        kind = _write_weights(source, partial, recipe, settings, adapter, notify)
        _write_papers(partial, run, recipe, kind, step)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportReport(out, kind, weights_version(out), step)


def _source(run: Path, which: Which) -> tuple[Path, int | None]:
    """The folder of the weights, and their step.

    Raises:
        UsageError: there is none.
    """
    if which == "best" and is_model_folder(run / "best"):
        return run / "best", Best(run).step
    for name in ("policy", "model", "adapter"):
        if is_model_folder(run / name) or (run / name / ADAPTER_CONFIG).is_file():
            return run / name, _steps(run, name)
    raise UsageError(f"{run} holds no weights yet", "agent train writes them after the first step")


def validations(run: Path) -> list[dict[str, Any]]:
    """What the run wrote of each validation, by step; of the steps that it has done, and of the best."""
    files = sorted((run / "validation").glob("step-*.json"))
    found = (_json(file, "cannot be read") for file in files)
    last = _last_step(run) or 0
    return [one for one in found if one["step"] <= last or one["step"] == Best(run).step]


def _steps(run: Path, weights: str) -> int | None:
    """Steps behind the last weights, where the run tells.

    A loop writes `policy` at every step, so that the report of an earlier end may be older than it.
    Every other run writes its weights when it ends, with a report.
    """
    looped = weights == "policy" and not (run / "retrain.json").is_file()
    if looped and (step := _last_step(run)) is not None:
        return step
    for name in ("retrain.json", "report.json"):
        if (run / name).is_file():
            found = _json(run / name, "cannot be read").get("steps")
            return int(found) if isinstance(found, int) else None
    pointer = run / "checkpoint" / "current.json"
    return int(_json(pointer, "cannot be read")["step"]) if pointer.is_file() else None


def _last_step(run: Path) -> int | None:
    lines = run_folder.lines(run / run_folder.METRICS)
    return max((int(line["step"]) for line in lines), default=None)


def _json(path: Path, wrong: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} {wrong}", "give the --out of agent train") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not an object")
    return found


def _write_weights(
    source: Path,
    out: Path,
    recipe: Mapping[str, Any],
    settings: Settings,
    adapter: bool,
    notify: Notify,
) -> str:
    """Weights, configuration and tokenizer; gives `merged` or `adapter`."""
    copy_tokenizer(source, out)
    alone = (source / ADAPTER_CONFIG).is_file()
    if adapter:
        _write_adapter(source if alone else source / ADAPTER, out, recipe, settings, notify)
        return "adapter"
    if alone:
        base = resolve(str(recipe["base"]), settings.models_dir, notify)
        require_base(source, base)
        notify(f"merging the adapter into {base.name}")
        merge_adapter(base, source, out)
        return "merged"
    for file in (*source.glob("*.safetensors"), *(source / name for name in _FILES)):
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    return "merged"


def _write_adapter(
    trained: Path, out: Path, recipe: Mapping[str, Any], settings: Settings, notify: Notify
) -> None:
    """The adapter as peft reads it, for the plain model below: one that the run's base has is in it.

    Raises:
        UsageError: the run trained all weights, or wrote its policy before adapters were kept; the
            base's adapter is no plain LoRA, or not the one that the run began with.
    """
    if not (trained / ADAPTER_CONFIG).is_file():
        lora = recipe.get("lora") or recipe.get("update", {}).get("lora")
        why = (
            "its policy was written before adapters were kept" if lora else "it trained all weights"
        )
        raise UsageError(f"this run has no adapter: {why}", "export it merged")
    below = adapter_behind(str(recipe["base"]))
    if below is not None:
        require_base(trained, resolve(str(recipe["base"]), settings.models_dir, notify))
        stack(below, trained, out)
    else:
        shutil.copyfile(trained / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
        shutil.copyfile(trained / ADAPTER_CONFIG, out / ADAPTER_CONFIG)
    config = _json(out / ADAPTER_CONFIG, "cannot be read")
    config["base_model_name_or_path"] = _base(recipe, "adapter")
    (out / ADAPTER_CONFIG).write_text(_lines(config), "utf-8")


def _base(recipe: Mapping[str, Any], kind: str) -> str:
    """The model that exported weights are an adapter of, or were trained from."""
    name = str(recipe["base"])
    below = adapter_behind(name) if kind == "adapter" else None
    return name if below is None else adapter_base(below)


def _write_papers(
    out: Path, run: Path, recipe: Mapping[str, Any], kind: str, step: int | None
) -> None:
    """Everything that is no weight."""
    again = _retrained(run)
    agent = again.get("agent") or recipe.get("rollouts", {}).get("agent", {})
    told = _TRAINED if not again else _learnt(again.get("from_episodes", ()))
    (out / "agent.toml").write_text(_toml(agent, told), "utf-8")
    (out / "recipe.json").write_text(_lines(recipe), "utf-8")
    (out / "README.md").write_text(model_card(run, recipe, kind, step), "utf-8")


def _lines(values: Mapping[str, Any]) -> str:
    return json.dumps(without_places(values), indent=2) + "\n"


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe, or a configuration, with every absolute path reduced to the name at its end: an exported
    folder goes to other machines. The system prompt is text and stays."""
    return {key: value if key == "system" else _named(value) for key, value in values.items()}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_places(value)
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    prefix = "vllm:" if value.startswith("vllm:") else ""
    place = value.removeprefix(prefix)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(place).is_absolute() or place.startswith("~"):
            return prefix + kind(place).name
    return value


def _retrained(run: Path) -> dict[str, Any]:
    """What a retraining wrote; nothing in any other run."""
    path = run / "retrain.json"
    return _json(path, "cannot be read") if path.is_file() else {}


_TRAINED = "The settings that this policy was trained under."


def _learnt(told: Sequence[str]) -> str:
    """Which settings a retraining's are."""
    if not told:
        return "The recipe's settings: the episodes that this policy learnt from do not agree on theirs."
    names = ", ".join(told)
    return f"As in the episodes that this policy learnt from: {names}. All else is the recipe's."


def _toml(agent: Mapping[str, Any], told: str) -> str:
    """The agent's settings, answers drawn greedily, under a line that tells whose they are."""
    made = isolated_settings(**agent).model_dump(mode="json", include=set(_SETTINGS))
    plain = {key: made[key] for key in _SETTINGS if not isinstance(made[key], dict)}
    lines = [f"# {told}", "# Run agent in this folder, or copy the file to where you run it."]
    lines += ['policy = "."']
    lines += [f"{key} = {_value(value)}" for key, value in plain.items() if value != ""]
    for section in (key for key in _SETTINGS if isinstance(made[key], dict)):
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_value(value)}" for key, value in made[section].items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A TOML value; JSON's strings, numbers, truth values and lists are TOML's."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def model_card(run: Path, recipe: Mapping[str, Any], kind: str, step: int | None) -> str:
    """The README of an exported policy, in Markdown with the Hub's front matter. Paths in it
    are reduced to names."""
    given, shown = _base(recipe, kind), without_places(recipe)
    spec, base = CATALOG.get(given), str(_named(given))
    licence = spec.licence if spec else _LICENCES.get(given, "")
    matter = {"library_name": "peft" if kind == "adapter" else "transformers"}
    matter |= {"base_model": spec.hub if spec else base}
    matter |= {"license": licence.lower() or "other", "pipeline_tag": "text-generation"}
    matter |= {"tags": ["turnwise", "agent", "question-answering"]}  # type: ignore[dict-item]
    told = "" if step is None else f", step {step}"
    whole = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n",
        f"# {run.resolve().name}\n",
        f"A policy for turnwise, trained from `{shown['base']}`; {kind} weights{told}. It acts in "
        "turns: it searches, judges what it found, answers with source numbers or declines.\n",
        f"Recipe digest `{_digest(run)}`; the whole recipe is in `recipe.json` and below, paths reduced "
        "to names.\n",
        _use(kind, base),
        "## Data\n\n" + _data(run, shown),
        "## Scores\n\n" + _scores(run, recipe),
        "## Licence\n\n" + _licence(base, licence),
        f"## Recipe\n\n```yaml\n{whole}```\n",
    ]
    return "\n".join(parts)


def _digest(run: Path) -> str:
    """Of the recipe, as the run's report tells it; or the best policy in it; "unknown"
    where neither does."""
    for name in ("report.json", "retrain.json"):
        if (run / name).is_file():
            found = _json(run / name, "cannot be read").get("recipe")
            if isinstance(found, str):
                return found
    return Best(run).recipe or "unknown"


def _use(kind: str, base: str) -> str:
    lines = ['cd THIS_FOLDER && agent ask "..."', 'agent ask --policy THIS_FOLDER "..."']
    if kind == "merged":
        lines += ['agent ask --policy vllm:THIS_FOLDER "..."', "vllm serve THIS_FOLDER"]
    told = (
        "" if kind == "merged" else f"The base `{base}` has to be there under that name or in that "
    )
    told += told and "folder; `base_model_name_or_path` in `adapter_config.json` says where.\n"
    return "## Use\n\n```\n" + "\n".join(lines) + f"\n```\n{told}"


def _data(run: Path, recipe: Mapping[str, Any]) -> str:
    if logged := _retrained(run):
        return (
            f"{logged['used']} logged episodes of use, {logged['corrected']} of them corrected.\n"
        )
    tasks = recipe.get("tasks")
    if not tasks:
        return "Demonstration trajectories; see the recipe.\n"
    lines = [f"- questions of `{name}`, {tasks['split']} part" for name in tasks["sets"]]
    if tasks.get("worlds"):
        worlds = tasks["worlds"]
        lines.append(
            f"- {worlds['count']} fictional worlds from seed {worlds['first_seed']}, "
            f"{worlds['entities']} entities and at most {worlds['questions']} questions each"
        )
    return "\n".join(lines) + "\n"


def _scores(run: Path, recipe: Mapping[str, Any]) -> str:
    """A table of the run's validations: share of held-out questions answered rightly."""
    found = validations(run)
    if not found:
        return "The run measured nothing.\n"
    kinds = sorted({kind for one in found for kind in one["kinds"]})
    rows = ["| step | right | " + " | ".join([*kinds, "searches"]) + " |"]
    rows.append("| --- " * (len(kinds) + 3) + "|")
    for one in found:
        cells = [_interval(one["right"]), *(_interval(one["kinds"].get(kind)) for kind in kinds)]
        rows.append(f"| {one['step']} | {' | '.join(cells)} | {one['searches']:.2f} |")
    heat = recipe.get("validation", {}).get("temperature", 0)
    drawn = f"at temperature {heat:g}" if heat else "greedily"
    told = f"Per cent of held-out questions, answered {drawn}; 95 % intervals over questions."
    broken = "".join(_errors(one) for one in found if one.get("errors"))
    return f"{told}\n\n" + "\n".join(rows) + f"\n{broken}"


def _errors(one: Mapping[str, Any]) -> str:
    return (
        f"\nAt step {one['step']}, {one['errors']} of {one['right']['n']} episodes ended in an error "
        f"and are not right; {_interval(one['without_errors'])} without them.\n"
    )


def _interval(one: Mapping[str, float] | None) -> str:
    if one is None:
        return "-"
    low, high = 100 * one["low"], 100 * one["high"]
    return f"{100 * one['mean']:.1f} [{low:.1f}, {high:.1f}]"


def _licence(base: str, licence: str) -> str:
    if licence:
        return f"{licence}, as the base `{base}`. Data sets have licences of their own.\n"
    return f"That of the base `{base}`: see there. Data sets have their own.\n"
