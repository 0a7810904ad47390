"""The learning curves of a run: which numbers belong together in a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval import plots
from rl.run_history import History

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A plot of some metrics over the steps.

    Attributes:
        title: of the plot.
        names: metric to what it is called in the plot; those ending in `/` stand for all that begin so.
        unit: of the values.
        log: logarithmic axis; values that are not positive are left out.
    """

    title: str
    names: Mapping[str, str]
    unit: str = ""
    log: bool = False


CURVES = (
    Curve("training reward and its parts", {"reward": "reward", "reward/": ""}),
    Curve(
        "training rollouts",
        {"right": "right", "abstained": "abstained", "capped": "at a cap", "invalid": "invalid"},
        "share, calls",
    ),
    Curve(
        "entropy",
        {
            "sampled_entropy": "policy, all rollouts",
            "entropy": "policy, what is learnt from",
            "tool_entropy": "tool calls",
        },
        "nats",
    ),
    Curve("KL", {"kl": "to the anchor", "old_kl": "to the policy that sampled"}, "nats a token"),
    Curve(
        "log-probability gap",
        {"gap_mean": "mean", "gap_max": "largest", "sync_gap": "canary after sync"},
        "nats a token",
        log=True,
    ),
    Curve("gradient norm", {"grad_norm": "policy", "critic/grad_norm": "critic"}, log=True),
    Curve("critic", {"critic/explained_variance": "variance of returns explained"}, "share"),
    Curve(
        "clipped",
        {"clip_low": "low", "clip_high": "high", "clip_dual": "dual", "masked": "masked"},
        "share of loss tokens",
    ),
    Curve("turns and searches", {"turns": "turns", "searches": "searches"}, "a rollout"),
    Curve("where the time goes", {"seconds/": ""}, "seconds"),
    Curve("tokens updated", {"speed/update_tokens": "policy"}, "tokens a second"),
    Curve(
        "utilisation of the devices by updates", {"speed/utilisation": "policy"}, "share of peak"
    ),
    Curve("memory", {"resident_gib": "of the process", "memory_gib": "device, peak"}, "GiB"),
)


def always_zero(seen: History) -> list[str]:
    """Titles of plots in which every number is 0."""
    return [curve.title for curve in CURVES if _flat(lines_of(seen, curve))]


def _flat(lines: Mapping[str, Points]) -> bool:
    return bool(lines) and all(y == 0 for points in lines.values() for _, y in points)


def draw(seen: History) -> list[str]:
    """The plots as SVG: validation first; those without a number, or of zeros alone, are left out.

    Raises:
        MissingExtraError: the plots need a package that is not installed.
    """
    found = [*_validation(seen)]
    for curve in CURVES:
        lines = lines_of(seen, curve)
        if lines and not _flat(lines):
            found.append(plots.curves(curve.title, lines, unit=curve.unit, log=curve.log))
    return found


def lines_of(seen: History, curve: Curve) -> dict[str, Points]:
    """The points of a plot, by what each line is called; lines without a point are left out."""
    names: dict[str, str] = {}
    for name, words in curve.names.items():
        if name.endswith("/"):
            found = dict.fromkeys(key for step in seen.steps for key in step)
            names |= {key: key.removeprefix(name) for key in found if key.startswith(name)}
        else:
            names[name] = words
    lines = {words: _points(seen, name, curve.log) for name, words in names.items()}
    return {words: points for words, points in lines.items() if points}


def _points(seen: History, name: str, positive: bool) -> Points:
    pairs = [(step["step"], step.get(name, math.nan)) for step in seen.steps]
    return [(x, y) for x, y in pairs if math.isfinite(y) and (y > 0 or not positive)]


def _validation(seen: History) -> Sequence[str]:
    if not seen.validations:
        return []
    right = [(float(one.step), 100 * one.right.mean) for one in seen.validations]
    band = [(one.step, 100 * one.right.low, 100 * one.right.high) for one in seen.validations]
    kinds = list(dict.fromkeys(kind for one in seen.validations for kind in one.kinds))
    by_kind = {
        kind or "-": [
            (float(one.step), 100 * one.kinds[kind].mean)
            for one in seen.validations
            if kind in one.kinds
        ]
        for kind in kinds
    }
    title = "validation: answered rightly, 95 % interval over questions"
    drawn = [plots.curves(title, {"right": right}, band, unit="%")]
    if len(by_kind) > 1:
        drawn.append(plots.curves("validation by kind of question", by_kind, unit="%"))
    return drawn
