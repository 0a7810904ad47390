"""Two runs on the same questions: differences with intervals, exact tests, and a correction.

Only questions that both runs scored are compared; the others are counted. Runs that were scored by
different scorers, or whose ids stand for different questions, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.sample import Sample, whole
from eval.score import score_run
from eval.stats import Interval, holm, mcnemar_p, paired, permutation_p
from kg.errors import UsageError

ALPHA = 0.05
#: Samples of one question in run A and in run B.
Pair = tuple[list[Sample], list[Sample]]


@dataclass(frozen=True)
class Comparison:
    """Some questions, B against A.

    Attributes:
        n: questions that both scored.
        a, b: headline score of each, 0 to 1.
        declined_a, declined_b: mean over questions of the share of replies that decline, 0 to 1.
        difference: of the headline, B - A, with its paired-bootstrap interval.
        f1_difference: the same for F1.
        won, lost: questions that only B, or only A, has right (single samples).
    """

    name: str
    n: int
    a: float
    b: float
    declined_a: float
    declined_b: float
    difference: Interval
    f1_difference: Interval
    won: int
    lost: int


@dataclass(frozen=True)
class SetComparison(Comparison):
    """One set, B against A.

    Attributes:
        scorer: by which both were scored.
        only_a, only_b: questions that one of them has alone.
        test: `McNemar` for single samples, `permutation` for means of several.
        p: of the headline's difference; `adjusted` after Holm over the sets of the comparison.
        halves: questions that have an answer, and those that have none, where the set has both; they
            describe the set's difference and are not tested.
    """

    scorer: str
    only_a: int
    only_b: int
    test: str
    p: float
    adjusted: float
    halves: tuple[Comparison, ...]

    @property
    def differs(self) -> bool:
        """Whether the difference stands after correction."""
        return self.adjusted < ALPHA


@dataclass(frozen=True)
class RunComparison:
    """Two runs, B against A.

    Attributes:
        sets: the sets that both hold.
        together: all their questions, each counting once, where there is more than one set; not tested.
    """

    sets: tuple[SetComparison, ...]
    together: Comparison | None


@dataclass(frozen=True)
class PairedSet:
    """A set that two runs hold, scored alike over the same questions.

    Attributes:
        a, b: scored samples of each run by question, those that it has alone included.
    """

    name: str
    scorer: str
    a: dict[str, list[Sample]]
    b: dict[str, list[Sample]]


def compare(a: Path, b: Path, scorer: str = "") -> RunComparison:
    """Compare two run folders set by set.

    Raises:
        UsageError: as `paired_sets`.
    """
    found = paired_sets(a, b, scorer)
    sets = [_set(one) for one in found]
    adjusted = holm({one.name: one.p for one in sets})
    return RunComparison(
        tuple(replace(one, adjusted=adjusted[one.name]) for one in sets),
        _compared("all", [pair for one in found for pair in _pairs(one)]) if found[1:] else None,
    )


def paired_sets(a: Path, b: Path, scorer: str = "") -> list[PairedSet]:
    """The sets that two run folders share, by question: a decomposed one counts once, see `whole`.

    Raises:
        UsageError: not runs, they have no scored question in common, a set is scored by different
            scorers, or the same id stands for different questions.
    """
    ran = score_run(a, scorer), score_run(b, scorer)
    scorers = [{one.name: one.scorer for one in run.sets} for run in ran]
    first, second = (_by_set(run.samples) for run in ran)
    shared = [name for name in first if set(first[name]) & set(second.get(name, {}))]
    if not shared:
        raise UsageError(f"{a} and {b} have no scored question in common")
    for name in shared:
        _require_one_scorer(name, scorers[0][name], scorers[1][name], a, b)
        _require_one_gold(
            name, first[name], second[name], ran[0].header.given == ran[1].header.given
        )
    return [PairedSet(name, scorers[0][name], first[name], second[name]) for name in shared]


def table(found: RunComparison) -> str:
    """The comparison as Markdown: a row a set, below it those of its halves; all sets at the end."""
    columns = (
        *("set", "scorer", "n", "A", "B", "B - A (95 %)", "F1: B - A", "declined: A, B"),
        *("won / lost", "test", "p", "p (Holm)", "differs"),
    )
    lines = [_row(columns), "|" + " --- |" * len(columns)]
    for one in found.sets:
        tested = one.test, f"{one.p:.3g}", f"{one.adjusted:.3g}", "yes" if one.differs else "no"
        lines.append(_row(_cells(one, one.scorer, _alone(one), tested)))
        lines += [_row(_cells(half)) for half in one.halves]
    if found.together:
        lines.append(_row(_cells(found.together)))
    return "\n".join(lines)


def _cells(
    one: Comparison, scorer: str = "", alone: str = "", tested: Sequence[str] = ("",) * 4
) -> list[str]:
    return [
        *(one.name, scorer, f"{one.n}{alone}", f"{100 * one.a:.1f}", f"{100 * one.b:.1f}"),
        *(str(one.difference).strip(), str(one.f1_difference).strip()),
        *(f"{100 * one.declined_a:.1f}, {100 * one.declined_b:.1f}", f"{one.won} / {one.lost}"),
        *tested,
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _alone(one: SetComparison) -> str:
    return f" (+{one.only_a} only A, +{one.only_b} only B)" if one.only_a or one.only_b else ""


def _by_set(samples: Sequence[Sample]) -> dict[str, dict[str, list[Sample]]]:
    out: dict[str, dict[str, list[Sample]]] = {}
    for sample in whole(samples):
        if not sample.excluded:
            out.setdefault(sample.benchmark, {}).setdefault(sample.task, []).append(sample)
    return out


def _require_one_scorer(name: str, first: str, second: str, a: Path, b: Path) -> None:
    if first != second:
        raise UsageError(
            f"'{name}' is scored by '{first}' in {a} and by '{second}' in {b}",
            f"agent compare {a} {b} --scorer {first}",
        )


def _require_one_gold(
    name: str,
    first: dict[str, list[Sample]],
    second: dict[str, list[Sample]],
    same_words: bool,
) -> None:
    """An id must stand for one question: a figure of pairs means nothing otherwise.

    Args:
        name: of the set.
        first, second: samples of each run by task.
        same_words: the runs told the same with each question, so that its text must be the same.
    """
    pairs = [(first[task][0], second[task][0]) for task in first if task in second]
    other = [x.task for x, y in pairs if not _same_task(x, y, same_words)]
    if other:
        raise UsageError(
            f"'{name}': {len(other)} of {len(pairs)} ids stand for another question or gold answer in "
            f"each run, '{other[0]}' first",
            "evaluate both over the same questions, one of them again with another --out",
        )


def _same_task(x: Sample, y: Sample, same_words: bool) -> bool:
    # of a question that was decomposed there are the gold answers of its steps alone
    if x.steps != y.steps:
        return True
    same_gold = (set(x.gold), x.answerable) == (set(y.gold), y.answerable)
    return same_gold and (not same_words or x.question == y.question)


def _pairs(found: PairedSet) -> list[Pair]:
    return [(found.a[task], found.b[task]) for task in found.a if task in found.b]


def _set(found: PairedSet) -> SetComparison:
    pairs = _pairs(found)
    halves = {
        f"{found.name}, {words}": [pair for pair in pairs if _answerable(pair) == answerable]
        for words, answerable in (("with an answer", True), ("without one", False))
    }
    test, p = _tested(pairs)
    return SetComparison(
        **vars(_compared(found.name, pairs)),
        scorer=found.scorer,
        only_a=len(found.a) - len(pairs),
        only_b=len(found.b) - len(pairs),
        test=test,
        p=p,
        adjusted=p,
        halves=tuple(_compared(name, part) for name, part in halves.items())
        if all(halves.values())
        else (),
    )


def _answerable(pair: Pair) -> bool:
    # a question that was decomposed in one of the runs is judged by the other
    return min((side[0] for side in pair), key=lambda sample: sample.steps).answerable


def _scores(pairs: Sequence[Pair], field: str) -> tuple[list[float], list[float]]:
    return [_mean(a, field) for a, _ in pairs], [_mean(b, field) for _, b in pairs]


def _tested(pairs: Sequence[Pair]) -> tuple[str, float]:
    a, b = _scores(pairs, "right")
    if all(value in (0, 1) for value in (*a, *b)):
        return "McNemar", mcnemar_p([v == 1 for v in b], [v == 1 for v in a])
    return "permutation", permutation_p(b, a)


def _compared(name: str, pairs: Sequence[Pair]) -> Comparison:
    n = len(pairs)
    a, b = _scores(pairs, "right")
    f1_a, f1_b = _scores(pairs, "f1")
    declined = [math.fsum(side) / n for side in _scores(pairs, "abstained")]
    return Comparison(
        name=name,
        n=n,
        a=math.fsum(a) / n,
        b=math.fsum(b) / n,
        declined_a=declined[0],
        declined_b=declined[1],
        difference=paired(b, a),
        f1_difference=paired(f1_b, f1_a),
        won=sum(x == 0 and y == 1 for x, y in zip(a, b, strict=True)),
        lost=sum(x == 1 and y == 0 for x, y in zip(a, b, strict=True)),
    )


def _mean(samples: Sequence[Sample], name: str) -> float:
    return math.fsum(getattr(sample, name) for sample in samples) / len(samples)
