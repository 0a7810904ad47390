"""The search tool: a query in, the best passages out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from tools.base import MISLED, Observation, Source, Tool, ToolContext, ToolError
from tools.search.batching import Batcher
from tools.withheld import Withheld

if TYPE_CHECKING:
    from tools.search.index import Hit, Index, Mode

MAX_QUERY_CHARS = 1000


class SearchArguments(BaseModel):
    """A free-text query."""

    query: str = Field(description="what to search for", min_length=1, max_length=MAX_QUERY_CHARS)


class SearchTool(Tool):
    """Searches one index.

    Args:
        index: an open index.
        k: passages a call shows.
        passage_chars: a longer passage is cut to its best window of sentences.
        mode: `hybrid`, `lexical` or `dense`.
    """

    name: ClassVar[str] = "search"
    family: ClassVar[str] = "search"
    description: ClassVar[str] = "Search the library for passages."
    example: ClassVar[str] = "query"
    Arguments: ClassVar[type[BaseModel]] = SearchArguments
    body: ClassVar[str] = "query"
    free_text: ClassVar[bool] = True

    def __init__(
        self, index: Index, k: int = 3, passage_chars: int = 500, mode: Mode = "hybrid"
    ) -> None:
        self.index = index
        self.k = k
        self.passage_chars = passage_chars
        self.mode = mode
        self._batcher = Batcher(self.passages_of)

    @property
    def version(self) -> str:
        """Digest of the index, and how it is read."""
        return f"{self.index.digest}:{self.mode}:k{self.k}:c{self.passage_chars}"

    async def run(self, arguments: SearchArguments, context: ToolContext) -> Observation:
        """The `k` best passages, best first; says so when there are none.

        A call that may not show some passages shows the best of the others, and tells in its data, under
        `misled`, which of the `k` best were `withheld`. Where no other passage matches the query it is
        the question that is searched for, which stands there as `instead`.
        """
        query = arguments.query.strip()
        if not query:
            raise ToolError("search: the query is empty")
        data: dict[str, Any] = {}
        if context.withheld is None:
            sources = await self._batcher.ask(query)
        else:
            sources, told = await asyncio.to_thread(
                self._astray, query, context.question, context.withheld
            )
            data = {MISLED: told}
        return Observation(self.name, "" if sources else "No passage found.", sources, data=data)

    def passages(self, query: str) -> tuple[Source, ...]:
        """What a call shows: the best passages, each cut to its best window."""
        return self.passages_of([query])[0]

    def passages_of(self, queries: Sequence[str]) -> list[tuple[Source, ...]]:
        """The same for several queries at once."""
        found = self.index.search_many(queries, self.k, self.mode)
        return [
            tuple(self._source(hit, query) for hit in hits)
            for query, hits in zip(queries, found, strict=True)
        ]

    def _astray(
        self, query: str, question: str, withheld: Withheld
    ) -> tuple[tuple[Source, ...], dict[str, Any]]:
        """What a search shows that goes wrong, and what was done to it."""
        best = self.index.search(query, self.k, self.mode)
        told: dict[str, Any] = {"withheld": [hit.id for hit in best if _covered(hit, withheld)]}
        left = self._without(query, withheld)
        if not left:
            query = told["instead"] = question
            left = self._without(query, withheld)
        return tuple(self._source(hit, query) for hit in left), told

    def _without(self, query: str, withheld: Withheld) -> list[Hit]:
        """The `k` best passages that are not withheld; fewer where no more match."""
        depth = self.k
        while True:
            found = self.index.search(query, depth, self.mode)
            left = [hit for hit in found if not _covered(hit, withheld)]
            if len(left) >= self.k or len(found) < depth:
                return left[: self.k]
            depth *= 4

    def _source(self, hit: Hit, query: str) -> Source:
        text = excerpt(hit.text, query, self.passage_chars)
        return Source(hit.id, hit.title, text, hit.score, hit.source, hit.content_sha256)


def _covered(hit: Hit, withheld: Withheld) -> bool:
    return withheld.covers((hit.id, hit.document), f"{hit.title} {hit.text}")


def excerpt(text: str, query: str, size: int) -> str:
    """At most about `size` characters of `text`: the window of sentences with most query words."""
    if len(text) <= size:
        return text
    sentences = re.split(r"(?<=[.!?])\s+", text)
    words = set(re.findall(r"\w{3,}", query.lower()))
    scores = [len(words & set(re.findall(r"\w{3,}", sentence.lower()))) for sentence in sentences]
    start, stop = _window([len(sentence) + 1 for sentence in sentences], scores, size)
    cut = " ".join(sentences[start:stop])
    return cut if len(cut) <= size else cut[:size].rsplit(" ", 1)[0]


def _window(lengths: list[int], scores: list[int], size: int) -> tuple[int, int]:
    """The best-scored half-open run of sentences within `size` characters; the first one wins."""
    best, best_range, start, length, score = -1, (0, 1), 0, 0, 0
    for stop, (width, value) in enumerate(zip(lengths, scores, strict=True), 1):
        length, score = length + width, score + value
        while length > size + 1 and start < stop - 1:
            length, score, start = length - lengths[start], score - scores[start], start + 1
        if score > best:
            best, best_range = score, (start, stop)
    return best_range
