"""Two runs on the same questions: differences with intervals, exact tests, and a correction.

Only questions that both runs scored are compared; the others are counted, each with the reason, those
of a set that only one run holds included. Runs that were scored by different scorers, or whose ids stand
for different questions, are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.analyses.given import OF
from eval.folder import read_tasks
from eval.sample import Sample, whole
from eval.score import NOT_RUN, RunScores, score_run
from eval.stats import Interval, estimate, holm, mcnemar_p, paired, permutation_p
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
        errors: questions on which an episode of A or of B failed; they count as wrong in all figures but
            `without_errors`, the headline's difference over the other questions.
        difference: of the headline, B - A, with its paired-bootstrap interval.
        f1_difference: the same for F1.
        won, lost: questions that only B, or only A, has right (single samples).
    """

    name: str
    n: int
    a: Interval
    b: Interval
    declined_a: Interval
    declined_b: Interval
    errors: int
    without_errors: Interval | None
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
class Side:
    """One of the runs: its folder, `name@version` of its policy, and how that was asked."""

    run: str
    policy: str
    engine: str
    temperature: float
    samples: int
    given: str


@dataclass(frozen=True)
class LeftOut:
    """Questions of a set that are not compared, and why."""

    name: str
    n: int
    why: str


@dataclass(frozen=True)
class RunComparison:
    """Two runs, B against A.

    Attributes:
        a, b: what they are.
        left_out: questions of either run that are not compared.
        sets: the sets that both hold.
        together: all their questions, each counting once, where there is more than one set; not tested.
    """

    a: Side
    b: Side
    left_out: tuple[LeftOut, ...]
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
    first, second = score_run(a, scorer), score_run(b, scorer)
    found = _paired_sets(first, second, a, b)
    sets = [_set(one) for one in found]
    adjusted = holm({one.name: one.p for one in sets})
    return RunComparison(
        _side(first, a),
        _side(second, b),
        tuple(_left_out(_standing(first, a), _standing(second, b))),
        tuple(replace(one, adjusted=adjusted[one.name]) for one in sets),
        _compared("all", [pair for one in found for pair in _pairs(one)]) if found[1:] else None,
    )


def paired_sets(a: Path, b: Path, scorer: str = "") -> list[PairedSet]:
    """The sets that two run folders share, by question: a decomposed one counts once, see `whole`.

    Raises:
        UsageError: not runs, they have no scored question in common, a set is scored by different
            scorers, or the same id stands for different questions.
    """
    return _paired_sets(score_run(a, scorer), score_run(b, scorer), a, b)


def _paired_sets(ran_a: RunScores, ran_b: RunScores, a: Path, b: Path) -> list[PairedSet]:
    scorers = [{one.name: one.scorer for one in run.sets} for run in (ran_a, ran_b)]
    first, second = _by_set(ran_a.samples), _by_set(ran_b.samples)
    shared = [name for name in first if set(first[name]) & set(second.get(name, {}))]
    if not shared:
        raise UsageError(f"{a} and {b} have no scored question in common")
    for name in shared:
        _require_one_scorer(name, scorers[0][name], scorers[1][name], a, b)
        same_words = ran_a.header.given == ran_b.header.given
        _require_one_gold(name, first[name], second[name], same_words)
    return [PairedSet(name, scorers[0][name], first[name], second[name]) for name in shared]


def table(found: RunComparison) -> str:
    """The comparison as Markdown: what the runs are; a row a set, below it those of its halves; all sets
    at the end; the same without questions that failed, where some did; and what is left out."""
    columns = (
        *("set", "scorer", "n", "A (95 %)", "B (95 %)", "B - A (95 %)", "F1: B - A"),
        *("declined: A", "declined: B", "won / lost", "test", "p", "p (Holm)", "differs"),
    )
    rows, every = [], []
    for one in found.sets:
        tested = one.test, f"{one.p:.3g}", f"{one.adjusted:.3g}", "yes" if one.differs else "no"
        rows.append(_cells(one, one.scorer, _alone(one), tested))
        rows += [_cells(half) for half in one.halves]
        every += [one, *one.halves]
    if found.together:
        rows.append(_cells(found.together))
        every.append(found.together)
    failed = [_without_errors(one) for one in every if one.errors]
    left = [[one.name, str(one.n), one.why] for one in found.left_out]
    parts = [f"{_named('A', found.a)}\n{_named('B', found.b)}", _table(columns, rows)]
    if failed:
        head = ("without questions that failed", "n", "left out", "B - A (95 %)")
        parts.append(_table(head, failed))
    if left:
        parts.append(_table(("left out", "n", "why"), left))
    return "\n\n".join(parts)


def _named(letter: str, side: Side) -> str:
    given = f", given {side.given}" if side.given else ""
    engine = f" on {side.engine}" if side.engine else ""
    return (
        f"- {letter}: {side.run}, policy {side.policy}{engine}, temperature {side.temperature:g}, "
        f"{side.samples} episode(s) a question{given}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), "|" + " --- |" * len(head), *map(_row, rows)])


def _cells(
    one: Comparison, scorer: str = "", alone: str = "", tested: Sequence[str] = ("",) * 4
) -> list[str]:
    return [
        *(one.name, scorer, f"{one.n}{alone}", one.a.shown, one.b.shown),
        *(one.difference.shown, one.f1_difference.shown),
        *(one.declined_a.shown, one.declined_b.shown, f"{one.won} / {one.lost}"),
        *tested,
    ]


def _without_errors(one: Comparison) -> list[str]:
    rest = one.without_errors.shown if one.without_errors else ""
    return [one.name, str(one.n - one.errors), str(one.errors), rest]


def _row(cells: Sequence[str]) -> str:
    plain = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(plain)} |"


def _alone(one: SetComparison) -> str:
    return f" (+{one.only_a} only A, +{one.only_b} only B)" if one.only_a or one.only_b else ""


def _side(run: RunScores, path: Path) -> Side:
    setup = run.header.setup
    return Side(
        run=str(path),
        policy=run.header.policy,
        engine=setup.get("engine", ""),
        temperature=setup["sampling"]["temperature"],
        samples=run.header.samples,
        given=run.header.given,
    )


def _standing(run: RunScores, path: Path) -> dict[str, dict[str, str]]:
    """By set and question of a run why it has no score; empty where it has one."""
    out: dict[str, dict[str, str]] = {}
    for name, task in read_tasks(path):
        out.setdefault(name, {})[str(task.meta.get(OF, task.id))] = NOT_RUN
    for sample in whole(run.samples):
        mine = out[sample.benchmark]
        mine[sample.task] = mine[sample.task] and sample.excluded
    return out


def _left_out(
    a: Mapping[str, Mapping[str, str]], b: Mapping[str, Mapping[str, str]]
) -> Iterator[LeftOut]:
    """The questions of two runs' standings that one of them has no score for."""
    for name in {**a, **b}:
        sides = [side.get(name) for side in (a, b)]
        tasks = {task: None for side in sides for task in side or ()}
        reasons = Counter(tuple(_reason(side, task) for side in sides) for task in tasks)
        for (in_a, in_b), n in reasons.items():
            if in_a or in_b:
                yield LeftOut(name, n, f"A: {in_a or 'scored'}; B: {in_b or 'scored'}")


def _reason(side: Mapping[str, str] | None, task: str) -> str:
    return "has no such set" if side is None else side.get(task, "was not asked it")


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
    a, b = _scores(pairs, "right")
    f1_a, f1_b = _scores(pairs, "f1")
    declined = [estimate(side) for side in _scores(pairs, "abstained")]
    sound = [pair for pair in pairs if not any(s.failed for side in pair for s in side)]
    rest_a, rest_b = _scores(sound, "right")
    return Comparison(
        name=name,
        n=len(pairs),
        a=estimate(a),
        b=estimate(b),
        declined_a=declined[0],
        declined_b=declined[1],
        errors=len(pairs) - len(sound),
        without_errors=paired(rest_b, rest_a) if sound else None,
        difference=paired(b, a),
        f1_difference=paired(f1_b, f1_a),
        won=sum(x == 0 and y == 1 for x, y in zip(a, b, strict=True)),
        lost=sum(x == 1 and y == 0 for x, y in zip(a, b, strict=True)),
    )


def _mean(samples: Sequence[Sample], name: str) -> float:
    return math.fsum(getattr(sample, name) for sample in samples) / len(samples)
