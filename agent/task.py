"""A task: a question, its accepted answers, and what is known about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kg.errors import UsageError
from tools.base import freeze

MAX_QUESTION_CHARS = 16_000


@dataclass(frozen=True, slots=True)
class Task:
    """What an episode is asked to do.

    Attributes:
        id: unique within its set; derived from the question when not given.
        question: plain text, at most `MAX_QUESTION_CHARS` characters.
        answers: accepted answers, best first; empty when unknown.
        answerable: False when the right reply is to abstain; None when unknown.
        kind: what the question needs (`one_hop`, `comparison`, …).
        evidence: ids of passages that support the answer.
        meta: anything else, JSON values only.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    answerable: bool | None = None
    kind: str = ""
    evidence: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(self, "answers", "evidence")

    @classmethod
    def ask(cls, question: str) -> Task:
        """A task from a bare question.

        Raises:
            UsageError: the question is empty, too long or not text.
        """
        text = question.strip()
        if not text:
            raise UsageError("the question is empty", 'agent ask "Which element is the lightest?"')
        if len(text) > MAX_QUESTION_CHARS:
            raise UsageError(
                f"the question has {len(text):,} characters; the limit is {MAX_QUESTION_CHARS:,}",
                "put long material into a file and ask about it with --corpus FILE",
            )
        if not _is_unicode(text):
            raise UsageError("the question is not UTF-8 text", "check the terminal's encoding")
        if "\x00" in text:
            raise UsageError("the question holds NUL bytes: it looks like a binary file, not text")
        return cls(id=hashlib.sha256(text.encode()).hexdigest()[:16], question=text)

    def with_answers(self, answers: Iterable[str], kind: str = "") -> Task:
        """The same question with its accepted answers."""
        return replace(self, answers=tuple(answers), answerable=True, kind=kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "answers": list(self.answers), "evidence": list(self.evidence)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_dict`; unknown keys are an error.

        Raises:
            TypeError: a key is missing or unknown, or a text stands where a list belongs.
        """
        for name in ("answers", "evidence"):
            if isinstance(data.get(name), str):
                raise TypeError(f"'{name}' is a text where a list belongs")
        return cls(**data)


def _is_unicode(text: str) -> bool:
    """False for bytes of an argument that the terminal's encoding did not cover."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
