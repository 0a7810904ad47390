"""The plots of a report, as SVG text. Needs the extra `eval` (matplotlib); no display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from eval.stats import Interval
from kg.errors import MissingExtraError

_WIDTH, _HEIGHT = 5.2, 3.2  # inches
_COLOUR = "#3563a8"


def interval_bars(title: str, values: Mapping[str, Interval]) -> str:
    """One bar with its 95 % interval a name; `n` stands in the label."""
    figure, axes = _axes(title)
    labels = [f"{name}\nn={value.n}" for name, value in values.items()]
    means = [100 * value.mean for value in values.values()]
    below = [100 * max(0.0, value.mean - value.low) for value in values.values()]
    above = [100 * max(0.0, value.high - value.mean) for value in values.values()]
    places = range(len(labels))
    axes.bar(places, means, yerr=[below, above], color=_COLOUR, capsize=3, width=0.6)
    axes.set_xticks(list(places), labels, fontsize=7)
    axes.set_ylim(0, 100)
    axes.set_ylabel("%")
    return _svg(figure)


def risk_coverage(title: str, points: Sequence[tuple[float, float]]) -> str:
    """Risk (share of wrong ones) against coverage (share of the answers kept, most confident first)."""
    figure, axes = _axes(title)
    axes.step([c for c, _ in points], [r for _, r in points], where="post", color=_COLOUR)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="share of the answers kept", ylabel="share of them wrong"
    )
    return _svg(figure)


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy against confidence; the size of a dot is the number of answers in its bin."""
    figure, axes = _axes(title)
    most = max((count for _, _, count in bins), default=1)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    sizes = [20 + 180 * count / most for _, _, count in bins]
    axes.scatter([c for c, _, _ in bins], [a for _, a, _ in bins], s=sizes, color=_COLOUR)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    return _svg(figure)


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    band: Sequence[tuple[float, float, float]] = (),
    *,
    unit: str = "",
    log: bool = False,
) -> str:
    """One line a name over steps, each given as (step, value).

    Args:
        title: of the plot.
        lines: points in order.
        band: (step, low, high) of an interval around the first line.
        unit: of the values.
        log: whether the axis of values is logarithmic.
    """
    figure, axes = _axes(title)
    colours = [_COLOUR, "#d1752b", "#3d8b4f", "#a33b4a", "#7a5aa6", "#777777"]
    for number, (name, points) in enumerate(lines.items()):
        mark = "o" if len(points) < 25 else None
        colour = colours[number % len(colours)]
        label = name.replace("$", r"\$")
        x, y = [step for step, _ in points], [value for _, value in points]
        dash = "-" if number < len(colours) else "--"
        axes.plot(x, y, dash, color=colour, linewidth=1.4, marker=mark, markersize=3, label=label)
    if band:
        places, low, high = zip(*band, strict=True)
        axes.fill_between(places, low, high, color=_COLOUR, alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")
    if len(lines) > 1:
        figure.legend(loc="outside right center", fontsize=7, frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    return _svg(figure)


def _axes(title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "eval", "plots") from error
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """The SVG element alone, the same bytes for the same plot."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "turnwise", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
