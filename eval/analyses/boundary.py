"""The knowledge boundary: what the policy knows by itself, and whether it searches for it.

Source: IKEA (arXiv 2505.07596): a question is known when at least one of N closed-book samples is right.
Made from two runs on the same questions: one closed-book with samples (`--tools ""`), one with tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare import paired_sets
from eval.folder import read_header
from eval.sample import Sample
from eval.stats import Interval, bootstrap, estimate, in_units
from kg.errors import UsageError

_SEARCH = "search"


@dataclass(frozen=True)
class Cell:
    """Questions of one kind: known or not, searched for or not.

    Attributes:
        accuracy: with tools; None for an empty cell.
        searches: mean number a question; None for an empty cell.
    """

    known: bool
    searched: bool
    n: int
    accuracy: Interval | None
    searches: Interval | None


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
        UsageError: by its `run.json` the closed one had tools, or the other no search; they share no
            answerable question, or as `paired_sets`.
    """
    shared = paired_sets(closed, opened)
    for one in shared:
        _require_tools(one.name, closed, opened)
    kept = [(one.name, _answerable(one.a), _answerable(one.b)) for one in shared]
    found = [_table(name, a, b) for name, a, b in kept if set(a) & set(b)]
    if not found:
        raise UsageError(f"{closed} and {opened} have no answerable question in common")
    return found


def _require_tools(name: str, closed: Path, opened: Path) -> None:
    """That a policy did not search is no closed book, and none that it could not have opened."""
    without, having = (_tools(run, name) for run in (closed, opened))
    if without:
        swapped = f"the other way round: agent eval boundary {opened} {closed}"
        raise UsageError(
            f"{closed} is not closed-book: '{name}' was asked with {', '.join(without)}",
            swapped if not having else 'make it with --tools ""',
        )
    if _SEARCH not in having:
        raise UsageError(
            f"{opened} could not search: '{name}' was asked with {', '.join(having) or 'no tools'}",
            f"make it with --tools {_SEARCH}",
        )


def _tools(run: Path, name: str) -> list[str]:
    [one] = [one for one in read_header(run).sets if one.name == name]
    return list(one.tools)


def table(found: Sequence[Boundary]) -> str:
    """The tables as Markdown."""
    lines = []
    for one in found:
        lines += [
            f"## {one.name}",
            "",
            f"closed-book accuracy {_shown(one.closed_book)}; searched for although known "
            f"{_shown(one.needless)}; answered without a search although unknown "
            f"{_shown(one.blind)}",
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
    return f"| {name} | {cell.n} | {accuracy} | {in_units(cell.searches)} |"


def _answerable(samples: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    return {task: of for task, of in samples.items() if of[0].answerable}


def _table(name: str, probes: dict[str, list[Sample]], played: dict[str, list[Sample]]) -> Boundary:
    shared = [task for task in played if task in probes]
    known = {task: any(sample.right == 1 for sample in probes[task]) for task in shared}
    searched = {task: any(sample.usage.searches for sample in played[task]) for task in shared}
    blind = {t: not searched[t] and any(s.answer for s in played[t]) for t in shared}
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
        blind=_share([blind[task] for task in shared if not known[task]]),
    )


def _cell(known: bool, searched: bool, samples: Sequence[Sample]) -> Cell:
    tasks = [sample.task for sample in samples]
    if not samples:
        return Cell(known, searched, 0, None, None)
    accuracy = estimate([s.right for s in samples], clusters=tasks)
    searches = bootstrap([s.usage.searches for s in samples], clusters=tasks)
    return Cell(known, searched, len(set(tasks)), accuracy, searches)


def _share(values: Sequence[bool]) -> Interval | None:
    return estimate([float(value) for value in values]) if values else None
