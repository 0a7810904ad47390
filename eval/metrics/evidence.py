"""Supporting facts, evidence triples and joint scores of multi-hop sets. Pure.

Sources: the evaluation scripts of HotpotQA, 2WikiMultihopQA v1.1 and MuSiQue.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from eval.metrics.text import FULL, NONE, Overlap, set_overlap

_DROPPED = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class SupportScore:
    """Scores of predicted against gold support; `em`: nothing missing, nothing more."""

    em: float
    overlap: Overlap

    @property
    def f1(self) -> float:
        """Of the overlap."""
        return self.overlap.f1


def supporting_facts(
    predicted: Collection[Hashable], gold: Collection[Hashable], both_empty_is_right: bool = False
) -> SupportScore:
    """Facts such as (title, sentence number), as sets.

    Args:
        predicted, gold: facts; for 2WikiMultihopQA see `titled_facts`.
        both_empty_is_right: MuSiQue gives F1 1 when there is neither; HotpotQA gives 0.
    """
    ours, theirs = set(predicted), set(gold)
    if both_empty_is_right and not ours and not theirs:
        return SupportScore(1.0, FULL)
    return SupportScore(float(ours == theirs), set_overlap(ours, theirs))


def titled_facts(
    predicted: Iterable[tuple[str, int]], gold: Iterable[tuple[str, int]]
) -> SupportScore:
    """2WikiMultihopQA's (title, sentence number): titles that differ in case alone match, and yet each
    spelling counts."""
    ours, theirs = (
        [(title.lower(), sentence) for title, sentence in set(facts)] for facts in (predicted, gold)
    )
    right = sum(fact in theirs for fact in ours)
    missing = sum(fact not in ours for fact in theirs)
    overlap = Overlap(right / len(ours), right / (right + missing)) if right else NONE
    return SupportScore(float(right == len(ours) and not missing), overlap)


def evidence_triples(
    predicted: Iterable[Sequence[str]], gold: Iterable[Iterable[Sequence[str]]]
) -> SupportScore:
    """2WikiMultihopQA's evidence: triples after lower case and without punctuation.

    Args:
        predicted: triples.
        gold: for each gold triple all its spellings; a prediction may match any of them.
    """
    ours = {_plain(triple) for triple in predicted}
    theirs = [{_plain(triple) for triple in spellings} for spellings in gold]
    matches = sum(any(triple in spellings for spellings in theirs) for triple in ours)
    overlap = Overlap(
        matches / len(ours) if ours else 0.0, matches / len(theirs) if theirs else 0.0
    )
    return SupportScore(float(matches == len(ours) == len(theirs)), overlap)


def joint(*parts: SupportScore) -> SupportScore:
    """HotpotQA's joint score: products of exact matches, of precisions and of recalls."""
    overlap = Overlap(
        prod(part.overlap.precision for part in parts), prod(part.overlap.recall for part in parts)
    )
    return SupportScore(prod(part.em for part in parts), overlap)


def _plain(triple: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(part.lower().translate(_DROPPED).split()) for part in triple)
