"""How scorers see text: normalisers, and the overlap of two bags of tokens. Pure functions.

Each normaliser follows the official scorer that is named; they differ, and a score means nothing
without its name (`docs/evaluation.md` has the table).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

Normaliser: TypeAlias = Callable[[str], str]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROPPED = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans(dict.fromkeys(string.punctuation, " "))
_TRIVIA = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalise(text: str) -> str:
    """SQuAD's: lower case, ASCII punctuation deleted, no articles, single spaces.

    HotpotQA, 2WikiMultihopQA, MuSiQue, Search-R1 and IKEA normalise the same way.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROPPED)).split())


def normalise_trivia(text: str) -> str:
    """TriviaQA's: punctuation, typographic quotes included, becomes a space and is not deleted."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_TRIVIA)).split())


def normalise_nq(text: str) -> str:
    """NQ-open's (ORQA): SQuAD's after Unicode decomposition, so that é is e and an accent."""
    return normalise(unicodedata.normalize("NFD", text))


def normalise_light(text: str) -> str:
    """IGPO's: lower case, punctuation becomes a space, articles stay."""
    return " ".join(text.lower().translate(_SPACED).split())


@dataclass(frozen=True, slots=True)
class Overlap:
    """Precision, recall and F1 of predicted against gold, each 0 to 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean; 0 when both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


NONE = Overlap(0.0, 0.0)
FULL = Overlap(1.0, 1.0)


def bag_overlap(predicted: str, gold: str) -> Overlap:
    """Overlap of two normalised texts as bags of tokens; an empty one overlaps with nothing."""
    ours, theirs = predicted.split(), gold.split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return Overlap(shared / len(ours), shared / len(theirs)) if shared else NONE


def set_overlap(predicted: Collection[object], gold: Collection[object]) -> Overlap:
    """Overlap of two sets; an empty one overlaps with nothing."""
    ours, theirs = set(predicted), set(gold)
    shared = len(ours & theirs)
    return Overlap(shared / len(ours), shared / len(theirs)) if shared else NONE


def contains(text: str, answer: str, by: Normaliser = normalise) -> bool:
    """Whether the normalised answer occurs in the normalised text on token boundaries."""
    needle = by(answer)
    return bool(needle) and f" {needle} " in f" {by(text)} "
