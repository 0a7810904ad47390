"""What the training commands run: plain values in, text for stdout out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.settings import Settings
from kg.errors import UsageError
from rl.collect import CollectRequest, collect, described
from tools.progress import bar

_TOLD = 5
# fields of a request whose name on the command line is another
_COLLECT = {"tasks": "TASKS", "actors": "--ray"}
_PROBE = {"tasks": "TASKS", "group": "--samples"}


def collected(
    options: Mapping[str, Any],
    settings: Settings,
    out: str,
    as_json: bool,
    notify: Callable[[str], None],
) -> str:
    """Collect groups of rollouts; see `rl.collect.collect`.

    The temperature is 1 unless the settings say otherwise, and then it is refused.

    Raises:
        UsageError: an option out of range, or as `collect`.
    """
    request = _request(options, _COLLECT)
    with bar(lines=True) as advance:
        report = collect(request, _at_one(settings), out, notify, advance)
    _tell(report.skipped, notify)
    if as_json:
        return json.dumps(asdict(report))
    return "\n".join(f"{key:<15} {value}" for key, value in described(report).items())


def probed(
    options: Mapping[str, Any],
    settings: Settings,
    out: Path,
    as_json: bool,
    notify: Callable[[str], None],
) -> str:
    """Label tasks by what the policy knows closed-book; see `rl.closed_book.probe`."""
    from rl.closed_book import probe

    request = _request(options, _PROBE)
    with bar(lines=True) as advance:
        report = probe(request, _at_one(settings), out, notify, advance)
    _tell(report.skipped, notify)
    if as_json:
        return json.dumps(asdict(report))
    return (
        f"{report.known} of {report.tasks} tasks are known, {100 * report.accuracy:.1f} % of samples "
        f"right, {report.unscored} tasks without a gold answer left out, {report.unsampled} without a "
        f"sample, {len(report.skipped)} rows skipped; written to {out}"
    )


def _tell(skipped: Sequence[str], notify: Callable[[str], None]) -> None:
    """The first of the rows that were left out, and how many more there are."""
    for line in skipped[:_TOLD]:
        notify(f"skipped: {line}")
    if len(skipped) > _TOLD:
        notify(f"skipped: {len(skipped) - _TOLD} more")


def _request(options: Mapping[str, Any], flags: Mapping[str, str]) -> CollectRequest:
    try:
        return CollectRequest(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise UsageError(f"{flags.get(field, f'--{field}')}: {problem['msg']}") from error


def _at_one(settings: Settings) -> Settings:
    """Temperature 1, unless the settings say otherwise."""
    if "temperature" in settings.sampling.model_fields_set:
        return settings
    sampling = settings.sampling.model_copy(update={"temperature": 1.0})
    return settings.model_copy(update={"sampling": sampling})
