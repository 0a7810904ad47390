"""The knowledge boundary: what the policy knows by itself, and whether it searches for it.

Source: IKEA (arXiv 2505.07596): a question is known when at least one of N closed-book samples is right.
Made from two runs on the same questions: one closed-book with samples (`--tools ""`), one with tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.sample import Sample
from eval.score import score_run
from eval.stats import Interval, estimate
from kg.errors import UsageError


@dataclass(frozen=True)
class Cell:
    """Questions of one kind: known or not, searched for or not.

    Attributes:
        accuracy: with tools; None for an empty cell.
        searches: mean number a question.
    """

    known: bool
    searched: bool
    n: int
    accuracy: Interval | None
    searches: float


@dataclass(frozen=True)
class Boundary:
    """The table of one set.

    Attributes:
        closed_book: accuracy of the closed-book samples.
        needless: share of known questions that were searched for; None when none is known.
        blind: share of unknown questions that were answered without a search; None when all are known.
    """

    name: str
    cells: tuple[Cell, ...]
    closed_book: Interval
    needless: Interval | None
    blind: Interval | None


def boundary(closed: Path, opened: Path) -> list[Boundary]:
    """The table of every set that both runs hold.

    Raises:
        UsageError: not runs, the closed one searched, or they share no scored question.
    """
    probes, played = score_run(closed).samples, score_run(opened).samples
    if any(sample.usage.searches for sample in probes):
        raise UsageError(
            f"{closed} is not closed-book: it holds searches", 'make it with --tools ""'
        )
    found = [
        _table(name, _of(probes, name), _of(played, name))
        for name in dict.fromkeys(sample.benchmark for sample in played)
        if set(_of(probes, name)) & set(_of(played, name))
    ]
    if not found:
        raise UsageError(f"{closed} and {opened} have no scored question in common")
    return found


def table(found: Sequence[Boundary]) -> str:
    """The tables as Markdown."""
    lines = []
    for one in found:
        lines += [
            f"## {one.name}",
            "",
            f"closed-book accuracy {_shown(one.closed_book)}; searched for although known "
            f"{_shown(one.needless)}; not searched for although unknown {_shown(one.blind)}",
            "",
            "| | n | accuracy with tools | searches |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_row(cell) for cell in one.cells]
        lines.append("")
    return "\n".join(lines)


def _shown(share: Interval | None) -> str:
    return f"{str(share).strip()} % (n={share.n})" if share else "(none)"


def _row(cell: Cell) -> str:
    name = f"{'known' if cell.known else 'unknown'}, {'' if cell.searched else 'not '}searched"
    accuracy = str(cell.accuracy).strip() if cell.accuracy else ""
    return f"| {name} | {cell.n} | {accuracy} | {cell.searches:.2f} |"


def _of(samples: Sequence[Sample], name: str) -> dict[str, list[Sample]]:
    out: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.benchmark == name and not sample.excluded and sample.answerable:
            out.setdefault(sample.task, []).append(sample)
    return out


def _table(name: str, probes: dict[str, list[Sample]], played: dict[str, list[Sample]]) -> Boundary:
    shared = [task for task in played if task in probes]
    known = {task: any(sample.right == 1 for sample in probes[task]) for task in shared}
    searched = {task: any(sample.usage.searches for sample in played[task]) for task in shared}
    cells = tuple(
        _cell(k, s, [x for t in shared if (known[t], searched[t]) == (k, s) for x in played[t]])
        for k in (True, False)
        for s in (True, False)
    )
    every = [sample for task in shared for sample in probes[task]]
    return Boundary(
        name=name,
        cells=cells,
        closed_book=estimate([s.right for s in every], clusters=[s.task for s in every]),
        needless=_share([searched[task] for task in shared if known[task]]),
        blind=_share([not searched[task] for task in shared if not known[task]]),
    )


def _cell(known: bool, searched: bool, samples: Sequence[Sample]) -> Cell:
    tasks = [sample.task for sample in samples]
    accuracy = estimate([s.right for s in samples], clusters=tasks) if samples else None
    searches = sum(s.usage.searches for s in samples) / len(samples) if samples else 0.0
    return Cell(known, searched, len(set(tasks)), accuracy, searches)


def _share(values: Sequence[bool]) -> Interval | None:
    return estimate([float(value) for value in values]) if values else None
