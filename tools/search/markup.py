"""Markdown and HTML as sections: the text under each heading, scripts and navigation left out."""

from __future__ import annotations

import re

from tools.search.passages import Section

_HEADING = re.compile(r"^#{1,6}\s+(\S.*)$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(\S.*)$", re.MULTILINE)
# a target may hold one level of parentheses; no part can be matched in two ways, so time is linear
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)")
_IGNORED_TAGS = ["script", "style", "noscript", "template", "svg", "nav", "head", "iframe"]
_BLOCK_TAGS = [
    *(
        "p",
        "div",
        "li",
        "ul",
        "ol",
        "table",
        "tr",
        "td",
        "th",
        "br",
        "pre",
        "blockquote",
        "dd",
        "dt",
    ),
    *("section", "article", "header", "footer", "main", "figcaption", "aside"),
]
_HEADING_TAGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
# Marks a heading line in the flattened page; stripped from the page's own text first.
_MARK = "\x02"


def read_markdown(text: str, fallback_title: str) -> tuple[str, tuple[Section, ...]]:
    """Title and sections of a Markdown file.

    The title is the front matter's, else the first heading, else `fallback_title`. Headings inside
    code fences are text. Links keep their words and lose their targets.
    """
    title = ""
    if front := _FRONT_MATTER.match(text):
        found = _FRONT_TITLE.search(front[1])
        title = _unquoted(found[1]) if found else ""
        text = text[front.end() :]
    headed = _headed_lines(_LINK.sub(r"\1", text).splitlines())
    sections = _sections(headed)
    first = next((heading for heading, _ in headed if heading), "")
    return title or first or fallback_title, sections


def _headed_lines(lines: list[str]) -> list[tuple[str, list[str]]]:
    runs: list[tuple[str, list[str]]] = [("", [])]
    fenced = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
            continue
        heading = None if fenced else _HEADING.match(line)
        if heading:
            runs.append((_plain(heading[1]), []))
        else:
            runs[-1][1].append(line)
    return runs


def _plain(heading: str) -> str:
    """A heading without the marks that may close it."""
    text = heading.rstrip()
    return text.rstrip("#").rstrip() or text


def _unquoted(title: str) -> str:
    text = title.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def read_html(text: str, fallback_title: str) -> tuple[str, tuple[Section, ...]]:
    """Title and sections of an HTML page: `<title>`, else the first `<h1>`, else `fallback_title`.

    Nothing of the page is run or fetched.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text.replace(_MARK, " "), "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    # only what stands in a tag is changed: a change beside it looks for it among all its siblings
    for tag in soup(_IGNORED_TAGS):
        tag.clear(decompose=True)
    for tag in soup(_HEADING_TAGS):
        tag.string = f"\n{_MARK}{' '.join(tag.get_text(' ').split())}\n"
    for tag in soup(_BLOCK_TAGS):
        tag.insert(0, "\n")
        tag.append("\n")
    runs: list[tuple[str, list[str]]] = [("", [])]
    for line in soup.get_text().splitlines():
        if line.startswith(_MARK):
            runs.append((line[1:], []))
        else:
            runs[-1][1].append(line)
    first = next((heading for heading, _ in runs if heading), "")
    return title or first or fallback_title, _sections(runs)


def _sections(runs: list[tuple[str, list[str]]]) -> tuple[Section, ...]:
    joined = ((heading, "\n".join(lines).strip()) for heading, lines in runs)
    return tuple(Section(heading, body) for heading, body in joined if body)
