"""QALD: questions made for DBpedia or Wikidata, of which those are asked whose answers are words.

A DBpedia resource is told by its name, which is the title of its page. Wikidata's identifiers and
addresses of pages have no words in them: a question that has one among its answers is left out, and so
is one without an answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from agent.task import Task
from eval.benchmarks.base import (
    BAD_ROW,
    WIKI,
    Benchmark,
    Make,
    Split,
    flag,
    read_tasks,
    rows,
    testing_only,
)
from eval.data import DataFolder
from eval.metrics import normalise
from eval.metrics.values import date_in_words, number, written

TRAIN = "qald9/train.jsonl.gz"
SCORER = "qald"
_DBPEDIA = re.compile(r"https?://dbpedia\.org/resource/(.+)")
_DATE = re.compile(r"([+-]?\d+)-(\d{1,2})-(\d{1,2})(?:T[\d:.]+Z?)?")
_POINT = "wktLiteral"  # coordinates


def load_train(data: DataFolder, split: Split) -> Benchmark:
    """QALD-9's training part: questions whose words fall into `split`."""
    tasks, skipped = read_tasks(data.file(TRAIN), _maker("qald9"), split, key=_words)
    return Benchmark("qald9", tasks, (data.file(WIKI),), SCORER, skipped)


def load_test(name: str, file: str, data: DataFolder, split: Split) -> Benchmark:
    """All questions of a test part."""
    testing_only(name, split)
    tasks, skipped = read_tasks(data.file(file), _maker(name))
    return Benchmark(name, tasks, (data.file(WIKI),), SCORER, skipped)


def load_plus(data: DataFolder, split: Split) -> Benchmark:
    """QALD-9-plus' test part, without what QALD-9's training part asks in the same words."""
    testing_only("qald9plus", split)
    known, make = _asked(data.file(TRAIN)), _maker("qald9plus")

    def unknown(row: dict[str, Any]) -> Task:
        task = make(row)
        if _words(task) in known:
            raise ValueError("QALD-9's training part asks the same")
        return task

    tasks, skipped = read_tasks(data.file("qald9plus/test_dbpedia.jsonl.gz"), unknown)
    return Benchmark("qald9plus", tasks, (data.file(WIKI),), SCORER, skipped)


def _words(task: Task) -> str:
    return normalise(task.question)


def _asked(path: Path) -> set[str]:
    """The words of all questions of a file, those that are left out included."""
    found = set()
    for _, row in rows(path, []):
        try:
            found.add(normalise(_english(row)))
        except BAD_ROW:
            continue
    return found


def _maker(name: str) -> Make:
    def make(row: dict[str, Any]) -> Task:
        kind, answers = _answers(row["answers"])
        id = f"{name}-{row['id']}"
        return Task(id, _english(row), answers, answerable=True, kind=kind)

    return make


def _english(row: dict[str, Any]) -> str:
    """The question in English.

    Raises:
        ValueError: there is none.
    """
    for told in row["question"]:
        if told["language"] == "en" and (text := told["string"].strip()):
            return str(text)
    raise ValueError("there is no English question")


def _answers(told: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """Kind and texts of the answers of a SPARQL query, each once.

    Raises:
        ValueError: there is none, or one has no words.
    """
    if len(told) != 1:
        raise ValueError(f"{len(told)} results of the query where one belongs")
    if "boolean" in told[0]:
        return "boolean", ("yes" if flag(told[0]["boolean"], "boolean") else "no",)
    cells = [cell for row in told[0]["results"]["bindings"] for cell in row.values()]
    found = dict.fromkeys(_text(cell) for cell in cells if cell["value"].strip())
    if not found:
        raise ValueError("no answer is given")
    kinds = {kind for kind, _ in found}
    return kinds.pop() if len(kinds) == 1 else "mixed", tuple(text for _, text in found)


def _text(cell: dict[str, str]) -> tuple[str, str]:
    """Kind and words of one answer."""
    value = cell["value"].strip()
    if cell["type"] == "uri":
        return "entity", _name(value)
    if cell.get("datatype", "").endswith(_POINT):
        raise ValueError(f"an answer is a place on the map: {value:.60}")
    if (figure := number(value)) is not None:
        return "number", written(figure)
    if date := _DATE.fullmatch(value):
        return "date", _date(*map(int, date.groups()))
    return "text", value


def _name(uri: str) -> str:
    """The name in the address of a DBpedia resource; of a part of one (`Gene_Conley__1`), that one's."""
    found = _DBPEDIA.fullmatch(uri)
    if not found:
        raise ValueError(f"an answer is an identifier without a name: {uri:.80}")
    return unquote(found[1]).split("__")[0].replace("_", " ").strip()


def _date(year: int, month: int, day: int) -> str:
    """In words; the first of January stands for a whole year, as both graphs write it, and of a year
    before 1000 the year is told alone."""
    if year < 1000:
        return f"{-year} BC" if year < 0 else str(year)
    return str(year) if month == day == 1 else date_in_words(year, month, day)
