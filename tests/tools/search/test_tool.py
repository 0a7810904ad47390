"""The search tool over a real index: what a call shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.base import ArgumentsError, ToolContext, ToolError
from tools.search.build import build_index
from tools.search.index import Index
from tools.search.tool import SearchTool, excerpt
from tools.withheld import Withheld

LONG = (
    "Herrings swim in shoals. Many people eat them. The harbour of Ardal was dug in 1734 by monks. "
    "Later it silted up. Today it is a park with old trees."
)


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "a.txt").write_text(LONG)
    (folder / "b.txt").write_text("Copper is a reddish metal that conducts electricity well.")
    build_index([folder / "a.txt", folder / "b.txt"], folder / "index")
    return SearchTool(Index.open(folder / "index"), k=1, passage_chars=100)


async def test_a_call_shows_the_best_passage_cut_to_the_part_that_matters(tool):
    seen = await tool.run(
        tool.check({"query": "When was the harbour of Ardal dug?"}), ToolContext("q")
    )
    [source] = seen.sources
    assert "1734" in source.text
    assert len(source.text) <= 100
    assert source.id
    assert source.digest


async def test_an_empty_query_is_told(tool):
    with pytest.raises(ToolError, match="empty"):
        await tool.run(tool.check({"query": "   "}), ToolContext("q"))


async def test_what_may_not_be_shown_makes_way_for_the_next_best(built):
    tool = SearchTool(Index.open(built), k=2, mode="lexical")
    query = tool.check({"query": "Mendeleev periodic table of elements, Curie radium, fever"})
    best = await tool.run(query, ToolContext(query.query))
    assert [source.id for source in best.sources] == ["mendeleev", "curie"]
    hidden = Withheld(frozenset({"mendeleev"}), frozenset({" husband pierre "}))
    seen = await tool.run(query, ToolContext(query.query, 0, hidden))
    assert [source.id for source in seen.sources] == ["aspirin"]
    assert seen.data == {"misled": {"withheld": ["mendeleev", "curie"]}}
    assert best.data == {}


@pytest.mark.parametrize("mode", ["lexical", "hybrid", "dense"])
async def test_no_mode_shows_what_is_withheld(built, mode):
    tool = SearchTool(Index.open(built), k=3, mode=mode)
    query = tool.check({"query": "Who discovered radium in sunlight?"})
    seen = await tool.run(query, ToolContext("q", 0, Withheld(frozenset({"curie"}))))
    assert [source.id for source in seen.sources]
    assert "curie" not in {source.id for source in seen.sources}
    if mode != "lexical":  # all others match in some degree
        assert len(seen.sources) == 3


async def test_where_only_the_withheld_match_the_question_is_searched_for(built):
    tool = SearchTool(Index.open(built), k=2, mode="lexical")
    query, hidden = tool.check({"query": "polonium"}), Withheld(frozenset({"curie"}))
    question = "Who discovered the element that keeps people awake?"
    seen = await tool.run(query, ToolContext(question, 0, hidden))
    assert "caffeine" in {source.id for source in seen.sources}
    assert seen.data == {"misled": {"withheld": ["curie"], "instead": question}}
    nothing = await tool.run(query, ToolContext("polonium?", 0, hidden))
    assert (nothing.sources, nothing.text) == ((), "No passage found.")


def test_wrong_arguments_are_named(tool):
    with pytest.raises(ArgumentsError, match="search: query"):
        tool.check({"query": 7})
    with pytest.raises(ArgumentsError, match="at most 1000"):
        tool.check({"query": "x" * 2000})


def test_the_version_tells_index_and_settings_apart(tool):
    assert tool.version != SearchTool(tool.index, k=2, passage_chars=100).version


@given(st.text(max_size=300), st.text(max_size=40), st.integers(20, 120))
def test_an_excerpt_is_short_and_from_the_text(text, query, size):
    cut = excerpt(text, query, size)
    assert len(cut) <= max(size, len(text) if len(text) <= size else size)
    assert all(word in text for word in cut.split())
