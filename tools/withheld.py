"""What a call may not show: how a search is made to go wrong, to see whether a policy recovers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_WORD = re.compile(r"\w+")
_JOINED = re.compile(r"(?<=\w)[.,'’](?=\w)|(?<=\b\w)\.")  # U.S., 1,200, O'Hara
_ARTICLES = frozenset({"a", "an", "the"})
_LEAST = 3  # characters of a phrase that says something; "a" is in every passage


@dataclass(frozen=True, slots=True)
class Withheld:
    """Passages that are not shown.

    Attributes:
        ids: of passages, or of the documents that passages were cut from.
        phrases: a passage that holds one of these is not shown either; words in lower case, single
            spaces around each.
    """

    ids: frozenset[str] = frozenset()
    phrases: frozenset[str] = frozenset()

    @classmethod
    def of(cls, ids: Iterable[str], answers: Iterable[str], question: str) -> Self:
        """What gives an answer away: passages by id, and every passage that holds the answer.

        An answer that stands in the question, such as one of two things to be compared, gives nothing
        away where it is read; nor does one of a letter or two, which stands everywhere. Numbers count.
        """
        asked = _words(question)
        phrases = (_words(answer) for answer in answers)
        return cls(
            frozenset(ids),
            frozenset(p for p in phrases if _tells(p.strip()) and p not in asked),
        )

    def covers(self, ids: Iterable[str], text: str) -> bool:
        """Whether a passage is withheld, by its ids and by its text."""
        if not self.ids.isdisjoint(ids):
            return True
        words = _words(text)
        return any(phrase in words for phrase in self.phrases)


def _words(text: str) -> str:
    """Words as the scorers compare them: without case, articles, and marks within a word."""
    found = _WORD.findall(_JOINED.sub("", text.casefold()))
    return f" {' '.join(word for word in found if word not in _ARTICLES)} "


def _tells(phrase: str) -> bool:
    return len(phrase) >= _LEAST or phrase.isdigit()
