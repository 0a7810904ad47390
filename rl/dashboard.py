"""A training run for people who watch it: a live view on a terminal, one plain line a step elsewhere.

Shows what it is told and knows nothing of the loop. Writes to stderr: stdout is for results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eval.stats import Interval
from kg.plain_text import printable
from rl.event_files import EventFiles
from rl.run_history import History, read_history
from rl.step_metrics import Metrics, Validated

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TREND = 32  # steps
_RATE = 10  # steps that the time to go is reckoned from
_BLOCKS = "▁▂▃▄▅▆▇█"

Row = tuple[str, str, Sequence[float]]
"""A name, what it is now, and its course."""


class Dashboard:
    """An observer of a run; use it as a context manager around `rl.loop.train`.

    Args:
        run: folder of the run: what a run that goes on did before is read from it, and event files for
            TensorBoard are written into `tensorboard/` below it.
        console: where to; stderr when None.
    """

    def __init__(self, run: Path, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self._events = EventFiles(run / "tensorboard", self.notify)
        self._seen: History = read_history(run)
        self._steps: list[Metrics] = list(self._seen.steps)
        self._validations = [(one.step, one.right) for one in self._seen.validations]
        last = self._seen.validations[-1].figures if self._seen.validations else {}
        self._misled = last.get("misled", math.nan), last.get("recovered", math.nan)
        self._stage = ("starting", 0, 0)
        self._new = 0  # steps of this process: only they tell how fast it is
        self._live: Any = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(
                console=self.console,
                get_renderable=self.view,
                refresh_per_second=4,
                transient=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stage = ("ended", 0, 0)
        if self._live is not None:
            self._live.stop()
        self._events.close()

    def stage(self, name: str, done: int, total: int) -> None:
        """See `rl.observer.Observer`."""
        self._stage = (name, done, total)

    def notify(self, line: str) -> None:
        """See `rl.observer.Observer`."""
        self._print(printable(line))

    def step(self, metrics: Metrics) -> None:
        """See `rl.observer.Observer`."""
        self._steps = [one for one in self._steps if one["step"] < metrics["step"]] + [metrics]
        self._new += 1
        self._stage = ("next step", 0, 0)
        self._events.step(metrics)
        if self._live is None:
            self._print(line(metrics, self.seconds_left))

    def validated(self, found: Validated) -> None:
        """See `rl.observer.Observer`."""
        earlier = [one for one in self._validations if one[0] < found.step]
        self._validations = [*earlier, (found.step, found.right)]
        if (astray := found.misled) is not None:
            again = math.nan if astray.recovered is None else astray.recovered.mean
            self._misled = astray.right.mean, again
        self._events.validated(found)
        if self._live is None:
            self._print(self._validation_line())
        if found.errors:
            self._print(errors_line(found))

    @property
    def seconds_left(self) -> float:
        """To the last step, by the mean of the last steps; NaN before the first."""
        recent = [one["seconds"] for one in self._steps[-_RATE:][-self._new :]] if self._new else []
        if not recent:
            return math.nan
        now = self._steps[-1]
        return (now["steps"] - now["step"]) * sum(recent) / len(recent)

    def view(self) -> RenderableType:
        """The live view."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, now, course in rows(self._steps):
            table.add_row(Text(name, "dim"), now, Text(trend(course), "cyan"))
        parts: list[RenderableType] = [table] if self._steps else []
        if self._validations:
            parts.append(Text(self._validation_line(), "bold"))
        return Panel(Group(*parts, self._progress()), title=self._title(), title_align="left")

    def _title(self) -> str:
        if not self._steps:
            return "training"
        now = self._steps[-1]
        return f"step {now['step']:.0f} of {now['steps']:.0f}, {clock(self.seconds_left)} to go"

    def _progress(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        name, done, total = self._stage
        row = Table.grid(padding=(0, 1))
        if total:
            row.add_row(name, ProgressBar(total, done, width=40), f"{done}/{total}")
        else:
            row.add_row(name)
        return row

    def _validation_line(self) -> str:
        step, right = self._validations[-1]
        best_step, best = max(self._validations, key=lambda one: one[1].mean)
        return (
            f"validation at step {step}: {_interval(right)} % right over {right.n} questions; "
            f"best {_interval(best)} at step {best_step}{self._misled_words()}"
        )

    def _misled_words(self) -> str:
        right, recovered = (100 * share for share in self._misled)
        if math.isnan(right):
            return ""
        again = "" if math.isnan(recovered) else f", {recovered:.1f} % recovered"
        return f"; when the first search misleads {right:.1f} % right{again}"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def errors_line(found: Validated) -> str:
    """How many episodes of a validation ended in errors, and the figure without them."""
    whole = found.without_errors
    told = "none is left" if whole is None else f"{_interval(whole)} % right without them"
    return (
        f"validation at step {found.step}: {found.errors} of {found.right.n} episodes ended in an error "
        f"and are not right; {told}"
    )


def line(metrics: Metrics, seconds_left: float) -> str:
    """A step as one line of plain text."""
    said = "  ".join(f"{name} {now}" for name, now, _ in rows([metrics]))
    return f"step {metrics['step']:.0f}/{metrics['steps']:.0f}  {said}  {clock(seconds_left)} to go"


def rows(steps: Sequence[Metrics]) -> list[Row]:
    """What is shown of the last step, with the course of the steps before it; what is not known is
    left out."""
    if not steps:
        return []
    recent = steps[-_TREND:]

    def course(name: str) -> list[float]:
        return [derived(one).get(name, math.nan) for one in recent]

    now = derived(steps[-1])
    out: list[Row] = []
    for name, words, form in _SHOWN:
        value = now.get(name, math.nan)
        if math.isfinite(value):
            text = form(value)
            if name in ("reward", "seconds"):
                text += _parts(now, name)
            out.append((words, text, course(name)))
    return out


def derived(step: Metrics) -> Metrics:
    """A step's metrics with those that are made of others: KL, share clipped, tokens a second."""
    clips = [step[name] for name in ("clip_low", "clip_high", "clip_dual") if name in step]
    made = {"any_kl": step.get("kl", step.get("old_kl", math.nan))}
    if clips:
        made["clip"] = sum(clips)
    if step.get("seconds/collect", 0.0) > 0 and "sampled_tokens" in step:
        made["rate"] = step["sampled_tokens"] / step["seconds/collect"]
    return {**step, **made}


def _parts(step: Metrics, name: str) -> str:
    """` (answer 0.31, format 0.05)`: what a sum is made of."""
    form = _decimal if name == "reward" else _seconds
    prefix = f"{name}/"
    found = [
        f"{key.removeprefix(prefix)} {form(value)}"
        for key, value in step.items()
        if key.startswith(prefix)
    ]
    return f" ({', '.join(found)})" if found else ""


def trend(values: Sequence[float]) -> str:
    """Numbers as a row of blocks, the lowest to the highest; a gap where there is none."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)

    def block(value: float) -> str:
        if not math.isfinite(value):
            return " "
        share = (value - low) / span if span else 0.5
        return _BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))]

    return "".join(map(block, values))


def clock(seconds: float) -> str:
    """`1:02:03`, `2:03`; `?` where it is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _interval(value: Interval) -> str:
    return str(value).strip()


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _rate(value: float) -> str:
    return f"{value:,.0f}"


def _gib(value: float) -> str:
    return f"{value:.1f} GiB"


_SHOWN = (
    ("reward", "reward", _decimal),
    ("right", "right", _share),
    ("advantage_abs", "advantage", _decimal),
    ("any_kl", "KL", _short),
    ("sampled_entropy", "entropy", _short),
    ("entropy", "entropy learnt from", _short),
    ("clip", "clipped", _share),
    ("gap_mean", "gap", _short),
    ("sync_gap", "sync gap", _short),
    ("grad_norm", "gradient", _short),
    ("critic/explained_variance", "critic", _share),
    ("turns", "turns", _one),
    ("searches", "searches", _one),
    ("rate", "tokens/s", _rate),
    ("resident_gib", "memory", _gib),
    ("seconds", "time", _seconds),
)
