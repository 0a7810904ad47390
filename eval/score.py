"""From a run folder to scores: every episode once, then figures with intervals. Needs no model.

The unit of account is the question: several samples of one are averaged first, and one that was asked
step by step is right when all its steps are. An episode that failed counts as wrong, and a second figure
leaves it out. A question without a gold answer, or with one that
cannot be compared with, has no answer score; it is counted, with the reason, and its retrieval is
scored all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.task import Task
from eval.analyses.given import OF
from eval.folder import (
    RunHeader,
    SetHeader,
    group_of,
    open_store,
    read_failed,
    read_header,
    read_tasks,
)
from eval.metrics import normalise, weighted
from eval.metrics import scorer as named
from eval.metrics.abstention import Reply, reliability, risk_coverage
from eval.metrics.answers import NUMBER
from eval.metrics.sampling import majority, pass_at_k
from eval.metrics.values import number, number_in
from eval.sample import Sample, score_one, whole
from eval.stats import Interval, bootstrap, estimate, quantile, resampled
from kg.strict_json import finite

NOT_RUN = "not run"
_LABELS: dict[tuple[str, ...], bool] = {("yes",): True, ("no",): False}
_SIGNS = {"yes": 1, "no": -1}


@dataclass(frozen=True)
class SetScores:
    """Figures of one question set.

    Attributes:
        scorer: by which answers were scored.
        questions: that belong to the run; one that is decomposed counts once.
        excluded: reason to number of questions without an answer score.
        answers: name to interval, over the questions that have a score.
        without_errors: the headline over episodes that did not fail.
        kinds: the headline by kind of question; of decomposed ones the score of each step.
        by_searches: the headline by number of searches (4 stands for more).
        retrieval: name to interval, over questions with gold evidence.
        support: cited passages against gold ones, and jointly with the answer; see `Sample.support`.
        abstention: coverage and the rest, each over the questions that it is about.
        calibration: AUROC, area under risk-coverage and ECE of the confidence of answers, and the share
            of questions that were answered with one, without which they mean little; of yes-or-no sets
            the ROC-AUC of the label, too; empty without a confidence.
        risk_coverage, reliability: the curves behind it over all answers, see `eval.metrics.abstention`.
        several: pass@k and maj@n of the samples that the run was to have, over the questions that have
            them all; empty for single samples.
        incomplete: questions that ran and lack samples; `missing` is how many they lack together.
        usage: counts and seconds, means and percentiles.
        stop_reasons: of episodes; `stop_shares` are their shares.
        skipped: rows of the data that gave no question.
        asked_again: attempts that failed and whose question was asked again.
        no_evidence: why `retrieval` and `support` are left out; empty where they are not.
        numbers: of sets whose every gold answer is a number, scored as such: the share of questions
            that were answered with one number, and over these the RMSE and, to hold it against, the
            standard deviation of the gold numbers, both in the unit of the question.
        no_number: questions that were not; the RMSE leaves them out.
    """

    name: str
    scorer: str
    questions: int
    episodes: int
    errors: int
    excluded: dict[str, int]
    answers: dict[str, Interval]
    without_errors: Interval | None
    kinds: dict[str, Interval]
    by_searches: dict[int, Interval]
    retrieval: dict[str, Interval]
    support: dict[str, Interval]
    abstention: dict[str, Interval]
    calibration: dict[str, Interval]
    risk_coverage: list[tuple[float, float]]
    reliability: list[tuple[float, float, int]]
    several: dict[str, Interval]
    incomplete: int
    missing: int
    usage: dict[str, Interval]
    stop_reasons: dict[str, int]
    stop_shares: dict[str, Interval]
    skipped: list[str]
    asked_again: int = 0
    no_evidence: str = ""
    numbers: dict[str, Interval] = field(default_factory=dict)
    no_number: int = 0


@dataclass(frozen=True)
class RunScores:
    """A scored run."""

    header: RunHeader
    sets: tuple[SetScores, ...]
    samples: tuple[Sample, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, samples left out; figures that are not numbers become None."""
        return {
            "run": self.header.model_dump(),
            "sets": [finite(asdict(one)) for one in self.sets],
        }


def score_run(run: Path, scorer: str = "") -> RunScores:
    """Score every episode of a run folder.

    Args:
        run: the folder.
        scorer: instead of each set's own.

    Raises:
        UsageError: not a run, or a damaged one, or no such scorer.
    """
    header = read_header(run)
    tasks = read_tasks(run)
    scorers = {one.name: named(scorer or one.scorer).name for one in header.sets}
    with open_store(run) as store:
        found = {(one.group, one.seed): one for one in store.query()}
    again = Counter(row["benchmark"] for row in read_failed(run))
    samples: list[Sample] = []
    sets = []
    for one in header.sets:
        name, chosen = one.name, scorers[one.name]
        mine = [task for benchmark, task in tasks if benchmark == name]
        scored = [
            score_one(name, chosen, task, found[key])
            for task in mine
            for seed in range(header.seed, header.seed + header.samples)
            if (key := (group_of(name, task), seed)) in found
        ]
        samples += scored
        found_here = set_scores(name, chosen, mine, scored, header.samples, one.skipped)
        sets.append(replace(_with_evidence(found_here, one), asked_again=again[name]))
    return RunScores(header, tuple(sets), tuple(samples))


def _with_evidence(found: SetScores, header: SetHeader) -> SetScores:
    """Without figures of retrieval and support where no gold passage could be shown: they would be zero
    whatever the policy did."""
    hit = found.retrieval.get("hit")
    if hit is None or hit.mean > 0:
        return found
    why = ""
    if not set(header.tools) - {"judge"}:
        why = "no retrieval and support: asked closed-book"
    elif header.other_corpus:
        why = "no retrieval and support: another corpus than the set's own showed no gold passage"
    return replace(found, retrieval={}, support={}, no_evidence=why) if why else found


def set_scores(
    name: str,
    scorer: str,
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    planned: int = 1,
    skipped: Sequence[str] = (),
) -> SetScores:
    """Figures of one set from its scored episodes.

    Args:
        name, scorer: of the set.
        tasks: everything that belongs to the run.
        samples: those that were played.
        planned: samples a question that the run was to have.
        skipped: rows of the data that gave no task.
    """
    questions = len({task.meta.get(OF, task.id) for task in tasks})
    played, parts = whole(samples), [s for s in samples if not s.excluded]
    scored = [s for s in played if not s.excluded]
    last = {s.task: s for s in played}
    excluded = Counter(s.excluded for s in last.values() if s.excluded)
    if len(last) < questions:
        excluded[NOT_RUN] = questions - len(last)
    gold, cited = [s for s in samples if s.retrieval], [s for s in samples if s.support]
    kinds = {s.kind for s in parts}
    replies = [_reply(s) for s in scored]
    numbers = _numbers(scorer, scored)
    lacking = [planned - n for n in Counter(s.task for s in played).values() if n < planned]
    return SetScores(
        name=name,
        scorer=scorer,
        questions=questions,
        episodes=len(samples),
        errors=sum(s.failed for s in samples),
        excluded=dict(excluded),
        answers=_intervals(scored, {k: _field(k) for k in ("right", "em", "f1", "cover")}),
        without_errors=_interval([s for s in scored if not s.failed], _field("right")),
        kinds=_grouped(parts, lambda s: s.kind) if len(kinds) > 1 else {},
        by_searches=_grouped(scored, lambda s: min(s.usage.searches, 4)),
        retrieval=_intervals(gold, {k: _of(k, "retrieval") for k in _names(gold, "retrieval")}),
        support=_intervals(cited, {k: _of(k, "support") for k in _names(cited, "support")}),
        abstention=_abstention(scored),
        calibration=_calibration(scored),
        risk_coverage=risk_coverage(replies),
        reliability=reliability(replies),
        several=_several(scored, planned),
        incomplete=len(lacking),
        missing=sum(lacking),
        usage=_usage(played),
        stop_reasons=dict(Counter(s.stop_reason for s in samples).most_common()),
        stop_shares={
            reason: share
            for reason in dict.fromkeys(s.stop_reason for s in samples)
            if (share := _interval(samples, _ended_by(reason))) is not None
        },
        skipped=list(skipped),
        numbers=numbers,
        no_number=_without(numbers),
    )


Value = Callable[[Sample], float]


def _field(name: str) -> Value:
    return lambda sample: float(getattr(sample, name))


def _of(name: str, table: str) -> Value:
    return lambda sample: float(getattr(sample, table)[name])


def _names(samples: Sequence[Sample], table: str) -> list[str]:
    return list(getattr(samples[0], table)) if samples else []


def _ended_by(reason: str) -> Value:
    return lambda sample: float(sample.stop_reason == reason)


def _interval(samples: Sequence[Sample], value: Value) -> Interval | None:
    if not samples:
        return None
    return estimate([value(s) for s in samples], clusters=[s.unit for s in samples])


def _intervals(samples: Sequence[Sample], values: dict[str, Value]) -> dict[str, Interval]:
    found = {name: _interval(samples, value) for name, value in values.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _grouped(samples: Sequence[Sample], by: Callable[[Sample], Any]) -> dict[Any, Interval]:
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(by(sample), []).append(sample)
    return {
        key: interval
        for key in sorted(groups)
        if (interval := _interval(groups[key], _field("right"))) is not None
    }


def _reply(sample: Sample) -> Reply:
    right = sample.answerable and sample.right == 1
    return Reply(bool(sample.answer), right, sample.answerable, sample.confidence, sample.abstained)


def _calibration(samples: Sequence[Sample]) -> dict[str, Interval]:
    known = [s for s in samples if _sure(s)]
    if not known:
        return {}
    replies, units = [_reply(s) for s in known], [s.unit for s in known]
    makers = {"AUROC": weighted.auroc, "AURC": weighted.aurc, "ECE": weighted.ece}
    found = {name: resampled(make(replies), units) for name, make in makers.items()}
    share = _interval(samples, lambda s: float(_sure(s)))
    return _kept({"share answered": share, **found, "ROC-AUC of yes": _label_auc(known)})


def _sure(sample: Sample) -> bool:
    return bool(sample.answer) and sample.confidence is not None


def _label_auc(samples: Sequence[Sample]) -> Interval | None:
    """ROC-AUC of the label of yes-or-no questions: a sure yes ranks first and a sure no last; None for
    other sets. Answers that are neither are left out."""
    asked = [s for s in samples if s.answerable]
    if {s.gold for s in asked} - _LABELS.keys():
        return None
    said = [(s, sign) for s in asked if (sign := _SIGNS.get(normalise(s.answer)))]
    ranks = [sign * (s.confidence or 0.0) for s, sign in said]
    figure = weighted.roc_auc([_LABELS[s.gold] for s, _ in said], ranks)
    return resampled(figure, [s.unit for s, _ in said]) if said else None


def _numbers(scorer: str, samples: Sequence[Sample]) -> dict[str, Interval]:
    """How far answers that are one number lie from the gold ones, the nearest where there are several;
    empty for sets that do not ask for numbers alone."""
    asked = [s for s in samples if s.answerable]
    golds = {s.gold: [number(text) for text in s.gold] for s in asked}
    if scorer != NUMBER or any(None in told for told in golds.values()):
        return {}
    said = [(s, value) for s in asked if (value := number_in(s.answer)) is not None]
    near = [(value, _nearest(value, golds[s.gold])) for s, value in said]
    share = _interval(asked, lambda s: float(number_in(s.answer) is not None))
    if not said:
        return _kept({"share with a number": share})
    units = [s.unit for s, _ in said]
    error = resampled(weighted.rmse([value - gold for value, gold in near]), units)
    spread = resampled(weighted.deviation([gold for _, gold in near]), units)
    return _kept({"share with a number": share, "RMSE": error, "SD of gold": spread})


def _nearest(value: float, golds: Sequence[float | None]) -> float:
    return min((gold for gold in golds if gold is not None), key=lambda gold: abs(value - gold))


def _without(numbers: dict[str, Interval]) -> int:
    """Questions that no sample answered with a number."""
    if not numbers:
        return 0
    return numbers["share with a number"].n - (numbers["RMSE"].n if "RMSE" in numbers else 0)


def _abstention(samples: Sequence[Sample]) -> dict[str, Interval]:
    replies, units = [_reply(s) for s in samples], [s.unit for s in samples]
    if not replies:
        return {}
    answered, has_answer = [r.answered for r in replies], [r.answerable for r in replies]
    declined, has_none = [r.abstained for r in replies], [not r.answerable for r in replies]
    return _kept(
        {
            "coverage": _interval(samples, lambda s: float(bool(s.answer))),
            "accuracy when answered": _interval(
                [s for s in samples if s.answer], lambda s: float(_reply(s).right)
            ),
            "SimpleQA F1": resampled(weighted.simpleqa_f1(replies), units),
            "answerable F1": resampled(weighted.f1(answered, has_answer), units),
            "unanswerable F1": resampled(weighted.f1(declined, has_none), units),
        }
    )


def _kept(found: dict[str, Interval | None]) -> dict[str, Interval]:
    return {name: interval for name, interval in found.items() if interval is not None}


def _several(samples: Sequence[Sample], planned: int) -> dict[str, Interval]:
    """pass@k for k = 1 and all, and the majority's score, over questions that have all samples."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.task, []).append(sample)
    full = [group for group in groups.values() if len(group) == planned]
    if planned < 2 or not full:
        return {}
    units = [group[0].unit for group in full]
    out = {f"pass@{k}": estimate([_pass(group, k) for group in full], units) for k in (1, planned)}
    out[f"maj@{planned}"] = estimate([_majority_right(group) for group in full], units)
    return out


def _pass(group: Sequence[Sample], k: int) -> float:
    return pass_at_k(len(group), sum(s.right == 1 for s in group), k)


def _majority_right(group: Sequence[Sample]) -> float:
    """The score of what most samples say; those that say nothing have no vote, and 0 where none has."""
    voting = [s for s in group if s.vote is not None]
    if not voting:
        return 0.0
    winner = majority([str(s.vote) for s in voting], by=str)
    return next(s.right for s in voting if s.vote == winner)


def _usage(samples: Sequence[Sample]) -> dict[str, Interval]:
    if not samples:
        return {}
    fields = ("turns", "searches", "tool_calls", "invalid", "repeated", "rejected")
    tokens = ("prompt_tokens", "sampled_tokens")
    units = [s.unit for s in samples]
    out: dict[str, Interval | None] = {
        f"{f} / question": bootstrap([getattr(s.usage, f) for s in samples], clusters=units)
        for f in (*fields, *tokens)
    }
    seconds = [s.usage.seconds for s in samples]
    for percent in (50, 95):
        out[f"seconds p{percent}"] = resampled(quantile(seconds, percent / 100), units)
    return _kept(out)
