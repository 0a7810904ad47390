"""Scores of an answer under a named scorer: the official one of each set, and those of papers.

A scorer is three rules over a normaliser: when an answer equals a gold one, how far it overlaps with
it, and whether it covers it. Over several gold answers the best value of each score counts, each on
its own, as all official scorers but DROP's have it. Pure.

Sources: the evaluation scripts of SQuAD 1.1 and 2.0 (Rajpurkar et al.), HotpotQA (Yang et al.),
2WikiMultihopQA v1.1 (Ho et al.), MuSiQue (Trivedi et al.), TriviaQA (Joshi et al.), ORQA for NQ-open
(Lee et al.); Search-R1, IGPO, IKEA and FlashRAG as their released code computes. ReSeek released no
training code: `reseek` is the exact match that its paper reports, normalised as SQuAD's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass

from eval.metrics.choice import entities_in, entity_overlap, hits_at_1
from eval.metrics.text import (
    FULL,
    NONE,
    Normaliser,
    Overlap,
    bag_overlap,
    normalise,
    normalise_light,
    normalise_nq,
    normalise_trivia,
    set_overlap,
)
from eval.metrics.values import normalise_values, number, number_in, numbers_in, written
from kg.errors import UsageError

NUMBER = "number"
TOLERANCE = 0.5
_CLOSED = ("yes", "no", "noanswer")


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Scores of one answer, each 0 to 1.

    Attributes:
        em: exact match.
        f1, precision, recall: of tokens.
        cover: cover exact match: a gold answer occurs in the prediction.
    """

    em: float
    f1: float
    precision: float
    recall: float
    cover: float


@dataclass(frozen=True)
class Scorer:
    """One way to score answers.

    Attributes:
        name: as in tables and logs.
        normalise: applied to predictions and gold answers.
        overlap: of normalised prediction and gold.
        substring: cover matches inside words too, as some papers' code does.
        unanswerable: a question without gold answers is right when nothing is predicted (SQuAD 2.0);
            the others have no score for it.
    """

    name: str
    normalise: Normaliser
    overlap: Callable[[str, str], Overlap]
    substring: bool = False
    unanswerable: bool = False

    def __call__(self, prediction: str, answers: Sequence[str]) -> AnswerScore:
        """Score one prediction.

        Args:
            prediction: free text; empty for an abstention.
            answers: accepted answers.

        Raises:
            ValueError: no gold answer, and this scorer has no rule for that.
        """
        golds = [self.normalise(answer) for answer in answers]
        if self.unanswerable:
            golds = [gold for gold in golds if gold] or [""]
        if not golds:
            raise ValueError(f"the scorer '{self.name}' needs a gold answer")
        ours = self.normalise(prediction)
        overlaps = [self.overlap(ours, gold) for gold in golds]
        return AnswerScore(
            em=float(ours in golds),
            f1=max(o.f1 for o in overlaps),
            precision=max(o.precision for o in overlaps),
            recall=max(o.recall for o in overlaps),
            cover=float(any(self._covers(ours, gold) for gold in golds)),
        )

    def vote(self, prediction: str, answers: Collection[str]) -> str:
        """What a prediction is counted as in a majority; equal votes have equal scores."""
        return self.normalise(prediction)

    def _covers(self, ours: str, gold: str) -> bool:
        if self.unanswerable and not gold:
            return not ours
        if self.substring:
            return gold in ours
        return bool(gold) and f" {gold} " in f" {ours} "


class EntityScorer(Scorer):
    """Answers that are sets of entities, as graph question answering scores them: `em` is Hits@1 (the
    first entity named is a gold one), F1, precision and recall are of the sets.

    A prediction that is no gold entity as a whole is taken for a list; see `entities_in`.
    """

    def __call__(self, prediction: str, answers: Sequence[str]) -> AnswerScore:
        """Score one prediction against all gold entities together; see `Scorer`."""
        if not answers:
            raise ValueError(f"the scorer '{self.name}' needs a gold answer")
        named = entities_in(prediction, answers, self.normalise)
        overlap = entity_overlap(named, answers, self.normalise)
        ours = self.normalise(prediction)
        return AnswerScore(
            em=hits_at_1(named, answers, self.normalise),
            f1=overlap.f1,
            precision=overlap.precision,
            recall=overlap.recall,
            cover=float(any(self._covers(ours, self.normalise(gold)) for gold in answers)),
        )

    def vote(self, prediction: str, answers: Collection[str]) -> str:
        """See `Scorer.vote`; the entities in their order, as the first decides `em`."""
        named = entities_in(prediction, answers, self.normalise)
        return "; ".join(map(self.normalise, named))


class NumberScorer(Scorer):
    """Numbers: right within `TOLERANCE` of a gold one, in the unit of the question.

    The bound is a plain one and no publisher's: a whole number is right alone among whole numbers. An
    answer says a number when it holds exactly one. It covers the gold when any of its numbers is near
    enough. Gold answers that are no numbers are compared as SQuAD does.
    """

    def __call__(self, prediction: str, answers: Sequence[str]) -> AnswerScore:
        """Score one prediction; see `Scorer`."""
        if not answers:
            raise ValueError(f"the scorer '{self.name}' needs a gold answer")
        told = [(answer, number(answer)) for answer in answers]
        golds = [value for _, value in told if value is not None]
        texts = [answer for answer, value in told if value is None]
        said = number_in(prediction)
        right = float(said is not None and _near(said, golds))
        covered = float(any(_near(value, golds) for value in numbers_in(prediction)))
        numeric = AnswerScore(right, right, right, right, covered)
        if not texts:
            return numeric
        other = SCORERS["squad"](prediction, texts)
        pairs = zip(astuple(numeric), astuple(other), strict=True)
        return AnswerScore(*(max(pair) for pair in pairs))

    def vote(self, prediction: str, answers: Collection[str]) -> str:
        """See `Scorer.vote`: the number where nothing else counts, else numbers and words."""
        said = number_in(prediction)
        if said is not None and all(number(answer) is not None for answer in answers):
            return written(said)
        numbers = (written(value) for value in numbers_in(prediction) if math.isfinite(value))
        return " ".join((*numbers, normalise(prediction))).strip()


def _near(value: float, golds: Sequence[float]) -> bool:
    return any(abs(value - gold) <= TOLERANCE + 1e-9 for gold in golds)


def _squad2_overlap(predicted: str, gold: str) -> Overlap:
    """Where either is empty, both must be."""
    if not predicted or not gold:
        return FULL if predicted == gold else NONE
    return bag_overlap(predicted, gold)


def _closed_overlap(predicted: str, gold: str) -> Overlap:
    """HotpotQA's: yes, no and noanswer match as a whole or not at all."""
    if predicted != gold and (predicted in _CLOSED or gold in _CLOSED):
        return NONE
    return bag_overlap(predicted, gold)


def _token_set_overlap(predicted: str, gold: str) -> Overlap:
    """IGPO's: sets of tokens, so that a repeated word counts once."""
    return set_overlap(predicted.split(), gold.split())


SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("squad", normalise, bag_overlap),
        Scorer("squad2", normalise, _squad2_overlap, unanswerable=True),
        Scorer("hotpotqa", normalise, _closed_overlap),
        Scorer("2wikimultihopqa", normalise, _closed_overlap),
        Scorer("musique", normalise, _squad2_overlap),
        Scorer("triviaqa", normalise_trivia, bag_overlap),
        Scorer("nq_open", normalise_nq, bag_overlap),
        Scorer("search_r1", normalise, bag_overlap, substring=True),
        Scorer("igpo", normalise_light, _token_set_overlap),
        Scorer("reseek", normalise, bag_overlap),
        Scorer("ikea", normalise, bag_overlap),
        EntityScorer("entities", normalise, bag_overlap),
        EntityScorer("qald", normalise_values, bag_overlap),
        NumberScorer(NUMBER, normalise, bag_overlap),
        Scorer("flashrag", normalise, _closed_overlap, substring=True),
    )
}


def scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in SCORERS:
        near = difflib.get_close_matches(name, SCORERS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(SCORERS)}"
        raise UsageError(f"no scorer '{name}'", hint)
    return SCORERS[name]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD 2.0's exact match; no answers: the prediction must be empty."""
    return SCORERS["squad2"](prediction, answers).em


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD 2.0's F1; no answers: the prediction must be empty."""
    return SCORERS["squad2"](prediction, answers).f1
