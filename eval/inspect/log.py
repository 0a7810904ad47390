"""A finished run folder as Inspect logs, one for each question set.

A run folder holds more than an Inspect log: token ids, log-probabilities, spans and rewards stay
behind. Everything that Inspect has a place for goes there; the rest of a question is its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.trajectory import Status, StopReason, Trajectory
from eval.folder import RunHeader, SetHeader, open_store
from eval.inspect.messages import messages_of, usage_of
from eval.judge import Judged, read_judged
from eval.sample import Sample
from eval.score import RunScores, SetScores, score_run
from eval.stats import Interval
from kg.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore, EvalSpec

_FIGURES = ("right", "em", "f1", "cover")
_LIMITS = {
    StopReason.MAX_TURNS: "turn",
    StopReason.MAX_TOKENS: "token",
    StopReason.MAX_SECONDS: "time",
    StopReason.CONTEXT_LENGTH: "context",
    StopReason.MAX_TOOL_CALLS: "custom",
    StopReason.REPETITION: "custom",
}
_BUDGETS = {
    StopReason.MAX_TURNS: "turns",
    StopReason.MAX_TOKENS: "tokens",
    StopReason.MAX_SECONDS: "seconds",
    StopReason.MAX_TOOL_CALLS: "tool_calls",
    StopReason.REPETITION: "repeats",
}


def export(run: Path, out: Path, scorer: str = "") -> list[Path]:
    """Write one `.eval` file a question set into `out`; gives their paths.

    Args:
        run: folder of a run.
        out: folder, made when it is not there.
        scorer: instead of each set's own.

    Raises:
        UsageError: not a run, or `out` cannot be written.
        MissingExtraError: inspect-ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise MissingExtraError("inspect-ai", "inspect", "Inspect logs") from error
    written = []
    for log in logs_of(run, scorer):
        path = out / f"{log.eval.task}.eval"
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_eval_log(log, str(path), format="eval")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def logs_of(run: Path, scorer: str = "") -> Iterator[EvalLog]:
    """The log of each question set of a run."""
    scores = score_run(run, scorer)
    with open_store(run) as store:
        for one in scores.sets:
            mine = [s for s in scores.samples if s.benchmark == one.name]
            yield _log(scores, one, [(s, store.get(s.id)) for s in mine], read_judged(run, mine))


def _log(
    scores: RunScores,
    one: SetScores,
    episodes: Sequence[tuple[Sample, Trajectory]],
    judged: Judged | None,
) -> EvalLog:
    from inspect_ai.log import EvalLog, EvalResults, EvalStats

    header = scores.header
    [mine] = [s for s in header.sets if s.name == one.name]
    tasks = mine.tasks  # the steps of one question each
    ended = header.finished or max((_ended(done) for _, done in episodes), default="")
    verdicts = judged.verdicts if judged else {}
    return EvalLog(
        status="success" if one.episodes == tasks * header.samples else "cancelled",
        eval=_spec(header, mine),
        results=EvalResults(
            total_samples=tasks * header.samples,
            completed_samples=one.episodes - one.errors,
            scores=_results(one, judged),
        ),
        stats=EvalStats(started_at=header.created, completed_at=ended),
        samples=[_sample(s, done, header, verdicts.get(s.id)) for s, done in episodes],
    )


def _spec(header: RunHeader, mine: SetHeader) -> EvalSpec:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalRevision, EvalSpec

    source = header.source
    revision = EvalRevision(
        type="git",
        origin="",
        commit=str(source.get("revision", "")),
        dirty=bool(source.get("dirty")),
    )
    facts = ("setup", "given", "seed", "limit", "source", "finished")
    return EvalSpec(
        created=header.created,
        task=mine.name,
        dataset=EvalDataset(name=mine.name, location=mine.data or None, samples=mine.tasks),
        model=header.policy,
        config=EvalConfig(epochs=header.samples),
        revision=revision if source else None,
        packages=header.packages,
        metadata={
            **{name: getattr(header, name) for name in facts},
            **{name: getattr(mine, name) for name in ("tools", "corpus", "digest", "skipped")},
        },
    )


def _results(one: SetScores, judged: Judged | None) -> list[EvalScore]:
    """One score a figure: answers under the set's scorer, the others under what they are figures of."""
    found = [_score(name, one.scorer, value, one) for name, value in one.answers.items()]
    for kind, values in (("retrieval", one.retrieval), ("support", one.support)):
        found += [_score(name, kind, value, one) for name, value in values.items()]
    if judged is not None:
        kappa = asdict(judged.kappa) if judged.kappa else None
        facts = {"prompt": judged.prompt, "agreement": asdict(judged.agreement), "kappa": kappa}
        made = _score("judged", judged.judge, judged.accuracy, one)
        found.append(made.model_copy(update={"metadata": {**facts, "unread": judged.unread}}))
    return found


def _score(name: str, scorer: str, value: Interval, one: SetScores) -> EvalScore:
    """A figure of a set, the interval's ends beside the mean."""
    from inspect_ai.log import EvalMetric, EvalScore

    values = {"mean": value.mean, "low_95": value.low, "high_95": value.high}
    return EvalScore(
        name=name,
        scorer=scorer,
        scored_samples=value.n,
        unscored_samples=one.questions - value.n,
        metrics={key: EvalMetric(name=key, value=number) for key, number in values.items()},
    )


def _sample(sample: Sample, done: Trajectory, header: RunHeader, verdict: str | None) -> EvalSample:
    from inspect_ai.log import EvalError, EvalSample, EvalSampleLimit
    from inspect_ai.model import ModelOutput

    budget = header.setup["budgets"].get(_BUDGETS.get(done.stop_reason, ""), 0)
    kind: Any = _LIMITS.get(done.stop_reason)
    usage = usage_of(done)
    failed = done.status is Status.FAILED
    return EvalSample(
        id=sample.task,
        epoch=sample.seed - header.seed + 1,
        input=sample.question,
        target=list(sample.gold),
        messages=messages_of(done),
        output=ModelOutput.from_content(done.policy, sample.answer),
        scores=None if sample.excluded else _scores(sample),
        metadata=_metadata(sample, verdict),
        model_usage={done.policy: usage},
        started_at=done.created,
        completed_at=_ended(done),
        total_time=done.seconds,
        uuid=done.id,
        error=EvalError(message=done.error, traceback="", traceback_ansi="") if failed else None,
        limit=EvalSampleLimit(type=kind, limit=budget) if kind else None,
        turn_count=len(done.turns),
    )


def _scores(sample: Sample) -> dict[str, Any]:
    from inspect_ai.scorer import Score

    return {name: Score(value=getattr(sample, name), answer=sample.answer) for name in _FIGURES}


def _metadata(sample: Sample, verdict: str | None) -> dict[str, Any]:
    facts = {
        "kind": sample.kind,
        "answerable": sample.answerable,
        "status": sample.status,
        "stop_reason": sample.stop_reason,
        "excluded": sample.excluded,
        "retrieval": sample.retrieval,
        "support": sample.support,
        "judge": verdict,
        "confidence": sample.confidence,
    }
    return {
        key: value
        for key, value in facts.items()
        if not (isinstance(value, float) and math.isnan(value))
    }


def _ended(done: Trajectory) -> str:
    return (datetime.fromisoformat(done.created) + timedelta(seconds=done.seconds)).isoformat()
