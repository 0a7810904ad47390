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


@dataclass(frozen=True)
class SetComparison:
    """One set, B against A.

    Attributes:
        scorer: by which both were scored.
        n: questions that both scored.
        only_a, only_b: questions that one of them has alone.
        a, b: headline score of each, 0 to 1.
        difference: of the headline, B - A, with its paired-bootstrap interval.
        f1_difference: the same for F1.
        test: `McNemar` for single samples, `permutation` for means of several.
        p: of the headline's difference; `adjusted` after Holm over the sets of the comparison.
        won, lost: questions that only B, or only A, has right (single samples).
    """

    name: str
    scorer: str
    n: int
    only_a: int
    only_b: int
    a: float
    b: float
    difference: Interval
    f1_difference: Interval
    test: str
    p: float
    adjusted: float
    won: int
    lost: int

    @property
    def differs(self) -> bool:
        """Whether the difference stands after correction."""
        return self.adjusted < ALPHA


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


def compare(a: Path, b: Path, scorer: str = "") -> list[SetComparison]:
    """Compare two run folders set by set.

    Raises:
        UsageError: as `paired_sets`.
    """
    found = [_compared(one) for one in paired_sets(a, b, scorer)]
    adjusted = holm({one.name: one.p for one in found})
    return [replace(one, adjusted=adjusted[one.name]) for one in found]


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


def table(found: Sequence[SetComparison]) -> str:
    """The comparison as Markdown."""
    columns = (
        *("set", "scorer", "n", "A", "B", "B - A (95 %)", "F1: B - A", "won / lost"),
        *("test", "p", "p (Holm)", "differs"),
    )
    head = f"| {' | '.join(columns)} |"
    lines = [head, "|" + " --- |" * len(columns)]
    lines += [
        f"| {one.name} | {one.scorer} | {one.n}{_alone(one)} | {100 * one.a:.1f} | {100 * one.b:.1f} | "
        f"{str(one.difference).strip()} | {str(one.f1_difference).strip()} | {one.won} / {one.lost} | "
        f"{one.test} | {one.p:.3g} | {one.adjusted:.3g} | {'yes' if one.differs else 'no'} |"
        for one in found
    ]
    return "\n".join(lines)


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


def _compared(pair: PairedSet) -> SetComparison:
    first, second = pair.a, pair.b
    shared = [task for task in first if task in second]
    rights = [[_mean(run[task], "right") for task in shared] for run in (first, second)]
    f1s = [[_mean(run[task], "f1") for task in shared] for run in (first, second)]
    single = all(value in (0, 1) for run in rights for value in run)
    won, lost = (
        sum(x == 0 and y == 1 for x, y in zip(*sides, strict=True))
        for sides in (rights, rights[::-1])
    )
    p = (
        mcnemar_p([v == 1 for v in rights[1]], [v == 1 for v in rights[0]])
        if single
        else permutation_p(rights[1], rights[0])
    )
    return SetComparison(
        name=pair.name,
        scorer=pair.scorer,
        n=len(shared),
        only_a=len(first) - len(shared),
        only_b=len(second) - len(shared),
        a=math.fsum(rights[0]) / len(shared),
        b=math.fsum(rights[1]) / len(shared),
        difference=paired(rights[1], rights[0]),
        f1_difference=paired(f1s[1], f1s[0]),
        test="McNemar" if single else "permutation",
        p=p,
        adjusted=p,
        won=won,
        lost=lost,
    )


def _mean(samples: Sequence[Sample], name: str) -> float:
    return math.fsum(getattr(sample, name) for sample in samples) / len(samples)
