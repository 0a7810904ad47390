import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.search.markup import read_html, read_markdown
from tools.search.passages import Document, Section, count_words, cut_document, split_sentences


def _document(text, whole=False):
    return Document("doc", "Title", (Section("", text),), "doc.txt", whole)


def test_sentences_do_not_end_at_initials_and_abbreviations():
    text = "J. J. Thomson met Dr. Rutherford. They spoke of e.g. Electrons. Was it late? Yes."
    assert split_sentences(text) == [
        "J. J. Thomson met Dr. Rutherford.",
        "They spoke of e.g. Electrons.",
        "Was it late?",
        "Yes.",
    ]


def test_a_short_row_stays_one_passage_under_its_own_id():
    (passage,) = cut_document(_document("Two words. " * 50, whole=True), 20, 100)
    assert passage.id == passage.document == "doc"


def test_a_long_document_is_cut_evenly_between_sentences():
    sentence = "This sentence has exactly seven words here."
    passages = cut_document(_document(f"{sentence} " * 45), 100, 200)
    assert [passage.id for passage in passages] == ["doc#1", "doc#2", "doc#3", "doc#4"]
    sizes = [count_words(passage.text) for passage in passages]
    assert max(sizes) - min(sizes) <= 7
    assert all(passage.text.endswith("here.") for passage in passages)


def test_text_without_sentences_or_spaces_is_still_cut():
    spaced = cut_document(_document("word " * 1000), 100, 200)
    solid = cut_document(_document("字" * 10_000), 100, 200)
    assert max(count_words(passage.text) for passage in spaced + solid) <= 200
    assert sum(len(passage.text) for passage in solid) == 10_000


@given(
    st.lists(st.sampled_from(["Alpha.", "beta", "Gamma!", "d.", "42", "épée?"]), max_size=400),
    st.integers(10, 60),
)
def test_cutting_loses_and_invents_no_word(words, size):
    passages = cut_document(_document(" ".join(words)), size, size)
    assert " ".join(passage.text for passage in passages).split() == words
    assert len({passage.id for passage in passages}) == len(passages)
    assert all(count_words(passage.text) <= 3 * size for passage in passages)


def test_markdown_headings_head_their_passages_but_not_inside_code():
    text = "# Guide\nIntro.\n\n## Setup\nRun [it](http://x.y).\n```\n# not a heading\n```\n"
    title, sections = read_markdown(text, "fallback")
    assert title == "Guide"
    assert [section.heading for section in sections] == ["Guide", "Setup"]
    assert "# not a heading" in sections[1].text
    assert "Run it." in sections[1].text
    passages = cut_document(Document("g.md", title, sections, "g.md"), 100, 200)
    assert [passage.title for passage in passages] == ["Guide", "Guide: Setup"]


def test_markdown_front_matter_gives_the_title_and_is_not_text():
    title, sections = read_markdown("---\ntitle: 'Deep'\ntags: x\n---\nBody.\n", "fallback")
    assert (title, sections[0].text) == ("Deep", "Body.")


@pytest.mark.parametrize("piece", ["line<br>", "<p>line</p>", "<h2>line</h2>", "line<nav>x</nav>"])
def test_a_page_of_many_parts_takes_time_as_their_number(piece):
    """Each part was looked for among all that stand beside it: minutes for a page of a megabyte."""
    began = time.process_time()
    read_html(8000 * piece, "fallback")
    assert time.process_time() - began < 5


def test_html_gives_headed_text_without_scripts():
    page = (
        "<html><head><title>Page</title><style>p{}</style></head><body><nav>menu</nav>"
        "<p>One</p><p>two</p><h2>Part <b>A</b></h2><script>alert(1)</script><p>three</p>"
    )
    title, sections = read_html(page, "fallback")
    assert title == "Page"
    assert [(s.heading, s.text.split()) for s in sections] == [
        ("", ["One", "two"]),
        ("Part A", ["three"]),
    ]


@pytest.mark.parametrize(
    "text",
    ["A. " * 70_000, "Dr. " * 50_000, "." * 200_000, ". " * 100_000, "." + " " * 200_000 + "a"],
)
def test_sentences_of_hostile_text_take_linear_time(text):
    began = time.process_time()
    split_sentences(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "[](" * 70_000, "![a](b" * 30_000, "# a" + " #" * 100_000 + "b",
     "# a" + " " * 200_000 + "b", "---\ntitle: a" + " " * 200_000 + "b\n---\n", "[](" + "(b)" * 60_000],
)  # fmt: skip
def test_markdown_of_hostile_text_takes_linear_time(text):
    began = time.process_time()
    read_markdown(text, "x")
    assert time.process_time() - began < 2


def test_markdown_links_keep_their_words_and_headings_their_text():
    text = "---\ntitle: 'C: a \"language\"'\n---\n# C# and F# ##\nSee [the page](a_(b).html) and [c](d)."
    title, sections = read_markdown(text, "x")
    assert title == 'C: a "language"'
    assert [(s.heading, s.text) for s in sections] == [("C# and F#", "See the page and c.")]
