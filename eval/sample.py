"""One episode, scored: what was said, whether it was right, what it was shown and what it cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.analyses.given import OF, STEPS
from eval.metrics import SCORERS
from eval.metrics.answers import AnswerScore
from eval.metrics.choice import multiple_choice
from eval.metrics.evidence import SupportScore, joint, supporting_facts
from eval.metrics.retrieval import hit_at_k, mrr, ndcg_at_k, recall_at_k
from eval.metrics.text import Overlap
from eval.metrics.usage import Usage, total, usage

NO_GOLD = "no gold answer"
UNSCORABLE = "the gold answer cannot be compared with"
CUTS = (5, 10)  # of the retrieval table
_UNKNOWN = AnswerScore(*[math.nan] * 5)
_NOTHING = AnswerScore(*[0.0] * 5)


@dataclass(frozen=True)
class Sample:
    """One scored episode.

    Attributes:
        of, steps: of a step of a decomposed question, that question's id and its number of steps; empty
            and 0 otherwise.
        abstained: whether the policy declined by its own act; no answer without one is a spent budget
            or an error.
        vote: what the answer counts as among several of one question: its choice, or its text as the
            scorer sees it, empty for a declined question; None when nothing was said.
        excluded: why it has no answer score; empty when it has.
        right: the headline score, 0 to 1: the choice's, the abstention's, else exact match.
        retrieval: how the gold passages stand in what was shown, in order: `hit@k`, `recall@k`, `MRR`,
            `nDCG@10`, and `hit` and `recall` of everything; empty without gold passages.
        support: the passages that the answer cites against the gold ones, and both joined with the
            answer's own scores as HotpotQA joins them; empty without gold passages or gold answer.
        confidence: geometric-mean probability of the final reply's tokens; None when it is unknown or
            the episode gave no answer.
    """

    benchmark: str
    task: str
    of: str
    steps: int
    kind: str
    question: str
    gold: tuple[str, ...]
    answerable: bool
    seed: int
    id: str
    answer: str
    abstained: bool
    vote: str | None
    status: str
    stop_reason: str
    error: str
    excluded: str
    right: float
    em: float
    f1: float
    cover: float
    retrieval: dict[str, float]
    support: dict[str, float]
    confidence: float | None
    usage: Usage

    @property
    def unit(self) -> str:
        """The question that it counts for: a step counts for its own."""
        return self.of or self.task

    @property
    def failed(self) -> bool:
        """Whether the episode ended in an error."""
        return self.status == Status.FAILED


def whole(samples: Iterable[Sample]) -> list[Sample]:
    """Samples by question: the steps of one question and seed become one sample, right and sure as far
    as the worst of them is, at the cost of all, with the words and the gold of the last; left out where
    a step is missing. Others stay as they are."""
    out = []
    parts: dict[tuple[str, str, int], list[Sample]] = {}
    for sample in samples:
        if sample.of:
            parts.setdefault((sample.benchmark, sample.of, sample.seed), []).append(sample)
        else:
            out.append(sample)
    for (_, question, _), steps in parts.items():
        if len(steps) == steps[0].steps:
            out.append(_joined(question, steps))
    return out


def _joined(question: str, steps: Sequence[Sample]) -> Sample:
    """One sample of all steps of a question; it ended as the one that failed or gave no answer."""
    ended = min(reversed(steps), key=lambda s: (not s.failed, bool(s.answer)))
    votes = [s.vote for s in steps if s.vote is not None]
    sure = [s.confidence for s in steps if s.confidence is not None]
    how = ("answer", "abstained", "status", "stop_reason", "error")
    scores = ("right", "em", "f1", "cover")
    return replace(
        steps[-1],
        task=question,
        of="",
        vote="\n".join(votes) if len(votes) == len(steps) else None,
        excluded=next((s.excluded for s in steps if s.excluded), ""),
        confidence=min(sure) if len(sure) == len(steps) else None,
        usage=total([s.usage for s in steps]),
        **{name: getattr(ended, name) for name in how},
        **{name: min(getattr(s, name) for s in steps) for name in scores},
    )


def score_one(benchmark: str, scorer: str, task: Task, done: Trajectory) -> Sample:
    """Score one episode of a task."""
    answer = "" if done.status is Status.FAILED or done.abstained else done.answer.strip()
    excluded, right, found = _scored_or_excluded(scorer, task, answer, done)
    shown = [
        source.id for turn in done.turns if turn.observation for source in turn.observation.sources
    ]
    gold = task.evidence if task.answerable is not False else ()
    return Sample(
        benchmark=benchmark,
        task=task.id,
        of=str(task.meta.get(OF, "")),
        steps=int(task.meta.get(STEPS, 0)) if OF in task.meta else 0,
        kind=task.kind,
        question=task.question,
        gold=tuple(map(str, task.answers)),
        answerable=task.answerable is not False,
        seed=done.seed,
        id=done.id,
        answer=answer,
        abstained=done.abstained,
        vote="" if done.abstained else _vote(scorer, task, answer),
        status=done.status,
        stop_reason=done.stop_reason,
        error=done.error if done.status is Status.FAILED else "",
        excluded=excluded,
        right=right,
        em=found.em,
        f1=found.f1,
        cover=found.cover,
        retrieval=_retrieval(shown, gold) if gold else {},
        support=_support(done, gold, found) if gold and not excluded else {},
        confidence=done.confidence if answer else None,
        usage=usage(done),
    )


def _vote(scorer: str, task: Task, answer: str) -> str | None:
    if not answer:
        return None
    choices = [str(choice) for choice in task.meta.get("choices") or ()]
    for number in range(len(choices)):
        if multiple_choice(answer, choices, number):
            return f"choice {number}"
    return SCORERS[scorer].vote(answer, task.answers) or answer.casefold()


def _retrieval(shown: Sequence[str], gold: Collection[str]) -> dict[str, float]:
    everything = len(shown)
    return {
        **{f"hit@{k}": hit_at_k(shown, gold, k) for k in CUTS},
        **{f"recall@{k}": recall_at_k(shown, gold, k) for k in CUTS},
        "MRR": mrr(shown, gold),
        f"nDCG@{CUTS[-1]}": ndcg_at_k(shown, gold, CUTS[-1]),
        "hit": hit_at_k(shown, gold, everything),
        "recall": recall_at_k(shown, gold, everything),
    }


def _support(done: Trajectory, gold: Collection[str], found: AnswerScore) -> dict[str, float]:
    """Cited passages as supporting facts: the agent names passages, and no sentences of them."""
    said = done.status is not Status.FAILED
    cited = [s.id for s in done.sources if said and s.number in done.citations]
    support = supporting_facts(cited, gold)
    both = joint(SupportScore(found.em, Overlap(found.precision, found.recall)), support)
    scores = {"support": support, "joint": both}
    return {
        f"{name} {kind}": value
        for name, score in scores.items()
        for kind, value in (("EM", score.em), ("F1", score.f1))
    }


def answer_scores(
    scorer: str, answer: str, golds: Sequence[str], meta: Mapping[str, Any]
) -> tuple[float, AnswerScore]:
    """Headline, and the scores of an answer to a question that has one.

    No answer is never right, whatever the gold normalises to.

    Args:
        scorer: its name.
        answer: empty for an abstention.
        golds: accepted answers.
        meta: of the task; a choice is scored by `choices` and `right`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the gold cannot be compared with.
    """
    # a gold that cannot be scored shows itself whatever was answered
    found = SCORERS[scorer](answer, golds)
    right = found.em
    if "choices" in meta:
        right = multiple_choice(answer, meta["choices"], meta["right"])
    return (right, found) if answer else (0.0, _NOTHING)


def _scored_or_excluded(
    scorer: str, task: Task, answer: str, done: Trajectory
) -> tuple[str, float, AnswerScore]:
    """Why there is no answer score, and the scores: one bad gold must not end the others'."""
    if task.answerable is False:
        declined = float(done.abstained)
        return "", declined, AnswerScore(*[declined] * 5)
    if not task.answers:
        return NO_GOLD, math.nan, _UNKNOWN
    try:
        return "", *answer_scores(scorer, answer, task.answers, task.meta)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return f"{UNSCORABLE}: {error}", math.nan, _UNKNOWN
