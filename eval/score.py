"""From a run folder to scores: every episode once, then figures with intervals. Needs no model.

The unit of account is the question: several samples of one are averaged first. An episode that failed
counts as wrong, and a second figure leaves it out. A question without a gold answer, or with one that
cannot be compared with, has no answer score; it is counted, with the reason, and its retrieval is
scored all the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.task import Task
from eval.folder import RunHeader, group_of, open_store, read_header, read_tasks
from eval.metrics import scorer as named
from eval.metrics.abstention import (
    Reply,
    abstention,
    aurc,
    confidence_auroc,
    ece,
    reliability,
    risk_coverage,
)
from eval.metrics.sampling import majority, pass_at_k
from eval.sample import Sample, score_one
from eval.stats import Interval, bootstrap
from kg.strict_json import finite

NOT_RUN = "not run"


@dataclass(frozen=True)
class SetScores:
    """Figures of one question set.

    Attributes:
        scorer: by which answers were scored.
        questions: that belong to the run.
        excluded: reason to number of questions without an answer score.
        answers: name to interval, over the questions that have a score.
        without_errors: the headline over episodes that did not fail.
        kinds: the headline by kind of question.
        by_searches: the headline by number of searches (4 stands for more).
        retrieval: name to interval, over questions with gold evidence.
        abstention: figures that have one value for the set.
        calibration: AUROC, area under risk-coverage and ECE of the confidence; empty without one.
        risk_coverage, reliability: the curves behind it, see `eval.metrics.abstention`.
        several: pass@k and maj@n when there are several samples.
        usage: means and percentiles of counts and seconds.
        stop_reasons: of episodes.
        skipped: rows of the data that gave no question.
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
    abstention: dict[str, float]
    calibration: dict[str, float]
    risk_coverage: list[tuple[float, float]]
    reliability: list[tuple[float, float, int]]
    several: dict[str, float]
    usage: dict[str, float]
    stop_reasons: dict[str, int]
    skipped: list[str]


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
        sets.append(_set_scores(name, chosen, mine, scored, one.skipped))
    return RunScores(header, tuple(sets), tuple(samples))


def _set_scores(
    name: str, scorer: str, tasks: Sequence[Task], samples: Sequence[Sample], skipped: list[str]
) -> SetScores:
    scored = [s for s in samples if not s.excluded]
    ran = {s.task for s in samples}
    excluded = Counter(s.excluded for s in {s.task: s for s in samples}.values() if s.excluded)
    if len(ran) < len(tasks):
        excluded[NOT_RUN] = len(tasks) - len(ran)
    gold = [s for s in samples if s.evidence_recall is not None]
    kinds = sorted({s.kind for s in scored})
    replies = [_reply(s) for s in scored]
    return SetScores(
        name=name,
        scorer=scorer,
        questions=len(tasks),
        episodes=len(samples),
        errors=sum(s.failed for s in samples),
        excluded=dict(excluded),
        answers=_intervals(scored, {k: _field(k) for k in ("right", "em", "f1", "cover")}),
        without_errors=_interval([s for s in scored if not s.failed], _field("right")),
        kinds=_grouped(scored, lambda s: s.kind) if len(kinds) > 1 else {},
        by_searches=_grouped(scored, lambda s: min(s.usage.searches, 4)),
        retrieval=_intervals(gold, {k: _field(f"evidence_{k}") for k in ("hit", "recall", "mrr")}),
        abstention=_abstention(replies),
        calibration=_calibration(replies),
        risk_coverage=risk_coverage(replies),
        reliability=reliability(replies),
        several=_several(scored),
        usage=_usage(samples),
        stop_reasons=dict(Counter(s.stop_reason for s in samples).most_common()),
        skipped=skipped,
    )


Value = Callable[[Sample], float]


def _field(name: str) -> Value:
    return lambda sample: float(getattr(sample, name))


def _interval(samples: Sequence[Sample], value: Value) -> Interval | None:
    if not samples:
        return None
    return bootstrap([value(s) for s in samples], clusters=[s.task for s in samples])


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
    return Reply(bool(sample.answer), right, sample.answerable, sample.confidence)


def _calibration(replies: Sequence[Reply]) -> dict[str, float]:
    if all(reply.confidence is None for reply in replies):
        return {}
    return {"AUROC": confidence_auroc(replies), "AURC": aurc(replies), "ECE": ece(replies)}


def _abstention(replies: Sequence[Reply]) -> dict[str, float]:
    found = abstention(replies)
    return {
        "coverage": found.coverage,
        "accuracy when answered": found.selective_accuracy,
        "SimpleQA F1": found.simpleqa_f1,
        "answerable F1": found.answerable.f1,
        "unanswerable F1": found.unanswerable.f1,
    }


def _several(samples: Sequence[Sample]) -> dict[str, float]:
    """pass@k for k = 1 and all, and the majority's score; nothing for single samples."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.task, []).append(sample)
    n = min((len(group) for group in groups.values()), default=0)
    if n < 2:
        return {}
    out = {f"pass@{k}": _mean(_pass(group, k) for group in groups.values()) for k in (1, n)}
    out[f"maj@{n}"] = _mean(_majority_right(group) for group in groups.values())
    return out


def _pass(group: Sequence[Sample], k: int) -> float:
    return pass_at_k(len(group), sum(s.right == 1 for s in group), k)


def _majority_right(group: Sequence[Sample]) -> float:
    winner = majority([s.answer for s in group])
    return next(s.right for s in group if s.answer == winner)


def _usage(samples: Sequence[Sample]) -> dict[str, float]:
    if not samples:
        return {}
    fields = ("turns", "searches", "tool_calls", "invalid", "repeated", "rejected")
    tokens = ("prompt_tokens", "sampled_tokens")
    out = {
        f"{f} / question": _mean(getattr(s.usage, f) for s in samples) for f in (*fields, *tokens)
    }
    seconds = [s.usage.seconds for s in samples]
    for percent in (50, 95):
        out[f"seconds p{percent}"] = float(np.percentile(seconds, percent))
    return out


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
