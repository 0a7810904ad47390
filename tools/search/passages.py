"""From documents to passages: about a hundred words each, cut between sentences.

Passage ids are stable: the document's id when it stays whole, `id#n` (from 1) when it is cut.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from operator import itemgetter

_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9])|(?<=[。！？])""")
_NOT_AN_END = re.compile(r"(?:\b[A-Z]|\b(?:Dr|Mr|Mrs|Ms|St|Prof|Fig|No|vs|al|e\.g|i\.e|cf|ca))\.$")
_ABBREVIATION = 8  # letters that tell one from the end of a sentence
_LETTERS_PER_WORD = 10


@dataclass(frozen=True, slots=True)
class Section:
    """A run of text under one heading; `heading` is empty before the first one."""

    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a reader yields.

    Attributes:
        id: the row's own id, or the relative path.
        title: shown as the source's name and searched together with the text.
        sections: in reading order; a JSONL row has exactly one.
        source: the file it came from, with the line for JSONL.
        whole: whether it may stay one passage up to `whole_words`.
    """

    id: str
    title: str
    sections: tuple[Section, ...]
    source: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit of retrieval. `document` is the id of the document it was cut from."""

    id: str
    document: str
    title: str
    text: str
    source: str

    @property
    def content_sha256(self) -> str:
        """Hex digest of the text alone: equal texts are one search result."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def indexed_text(self) -> str:
        """What both retrievers index: the title, then the text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def count_words(text: str) -> int:
    """Words of `text`; text written without spaces counts a word for every ten letters."""
    return max(len(text.split()), len(text) // _LETTERS_PER_WORD)


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, whitespace normalised; initials and abbreviations do not end one."""
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _NOT_AN_END.search(text, max(start, match.start() - _ABBREVIATION), match.start()):
            continue
        sentences.append(text[start : match.end()])
        start = match.end()
    sentences.append(text[start:])
    cleaned = (" ".join(sentence.split()) for sentence in sentences)
    return [sentence for sentence in cleaned if sentence]


def cut_document(document: Document, passage_words: int, whole_words: int) -> list[Passage]:
    """The passages of `document`; empty when it has no text."""
    if document.whole and count_words(document.sections[0].text) <= whole_words:
        text = document.sections[0].text.strip()
        return [Passage(document.id, document.id, document.title, text, document.source)]
    cuts = [
        (_title(document.title, section.heading), text)
        for section in document.sections
        for text in _cut_text(section.text, passage_words)
    ]
    return [
        Passage(f"{document.id}#{number}", document.id, title, text, document.source)
        for number, (title, text) in enumerate(cuts, 1)
    ]


def _title(title: str, heading: str) -> str:
    return title if not heading or heading == title else f"{title}: {heading}"


def _cut_text(text: str, passage_words: int) -> Iterator[str]:
    """Runs of whole sentences of even size, none much longer than `passage_words`."""
    pieces = [
        piece
        for sentence in split_sentences(text)
        for piece in _cut_long_sentence(sentence, 2 * passage_words)
    ]
    lengths = [count_words(piece) for piece in pieces]
    total = sum(lengths)
    if not total:
        return
    size = total / ceil(total / passage_words)
    # A sentence goes to the passage that its middle falls into.
    ends = list(accumulate(lengths))
    middles = (end - length / 2 for end, length in zip(ends, lengths, strict=True))
    numbered = zip((int(middle / size) for middle in middles), pieces, strict=True)
    for _, run in groupby(numbered, key=itemgetter(0)):
        yield " ".join(piece for _, piece in run)


def _cut_long_sentence(sentence: str, limit: int) -> Iterator[str]:
    """`sentence`, or pieces of `limit` words when it is longer (tables, lists, no full stops)."""
    if count_words(sentence) <= limit:
        yield sentence
        return
    words = sentence.split()
    if len(words) > limit:
        for start in range(0, len(words), limit):
            yield from _cut_letters(" ".join(words[start : start + limit]), limit)
    else:
        yield from _cut_letters(sentence, limit)


def _cut_letters(text: str, limit: int) -> Iterator[str]:
    letters = limit * _LETTERS_PER_WORD
    for start in range(0, len(text), letters):
        yield text[start : start + letters]
