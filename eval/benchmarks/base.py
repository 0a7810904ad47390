"""What a benchmark is: tasks, the corpus they are asked over, a scorer, and a split that never moves.

Every set has one small file beside this one. A file reads data as its publisher lays it out, gives
`Task`s, and names the corpus that an index is built from.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agent.task import MAX_QUESTION_CHARS, Task
from agent.toolbox import TOOLS
from eval.metrics import normalise
from kg.errors import UsageError

Split = Literal["train", "test"]
TEST_SHARE = 0.3
WIKI = "wiki_passages/corpus.jsonl.gz"
# what reading a field of a row can raise when the row is not what was expected
BAD_ROW = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
    UsageError,
)


@dataclass(frozen=True)
class Benchmark:
    """One question set.

    Attributes:
        name: as on the command line.
        tasks: in file order, with unique ids.
        corpus: files that hold the passages; empty for the bundled library.
        scorer: its official answer scorer, by name.
        skipped: rows that were left out, each with its place and the reason.
        graph: files of triples that the questions are asked over.
        needs: tools without which the questions make no sense; a closed-book run needs none.
        origin: where the data came from, see `eval.data.DataFolder`; empty for the bundled library.
    """

    name: str
    tasks: tuple[Task, ...]
    corpus: tuple[Path, ...]
    scorer: str = "squad2"
    skipped: tuple[str, ...] = ()
    graph: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    origin: str = ""

    def require(self, tools: Sequence[str], setting: str) -> None:
        """Refuse tools without one that the questions need; no tools at all are a closed-book run.

        Args:
            tools: names of those that episodes have.
            setting: how they are set, with `{}` for their names.

        Raises:
            UsageError: names the one that is missing.
        """
        lacking = [tool for tool in self.needs if tools and tool not in tools]
        if not lacking:
            return
        closed = f"{setting.format('')} for closed book"
        hint = f"this version does not have it; {closed}"
        if all(tool in TOOLS for tool in lacking):
            hint = f"{setting.format(','.join((*tools, *lacking)))}, or {closed}"
        raise UsageError(f"the questions of '{self.name}' need the tool '{lacking[0]}'", hint)


Make = Callable[[dict[str, Any]], Task]


def split_of(key: str) -> Split:
    """The split of a question (or of its article), by hash, so that it never moves.

    Shared data holds no official training part of these sets; this rule makes a held-out part that
    no training run of this project reads.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def read_tasks(
    path: Path, make: Make, split: Split | None = None, key: Callable[[Task], str] | None = None
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Tasks of a JSONL file, and what was wrong with rows that give none.

    Args:
        path: the file.
        make: a task from a row; may raise what is in `BAD_ROW`.
        split: part to keep; None keeps all.
        key: what decides a task's split; its id by default.

    Raises:
        UsageError: the file cannot be read at all.
    """
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for place, row in rows(path, problems):
        try:
            task = checked(make(row))
            inside = split is None or split_of(key(task) if key else task.id) == split
        except BAD_ROW as error:
            problems.append(f"{place}: {cause(error)}")
            continue
        if task.id in tasks:
            problems.append(f"{place}: the id '{task.id}' is there already")
        elif inside:
            tasks[task.id] = task
    return tuple(tasks.values()), tuple(problems)


def checked(task: Task) -> Task:
    """The task, once everything that a run and its scores read of it is of the right type.

    Accepted answers that normalise to nothing (`)`, `The`) are dropped: a reply that says nothing would
    equal them. Options of a choice stay, for these are compared by letter and raw text.

    Raises:
        ValueError: a field is of another type, the question is empty, or no accepted answer is left.
    """
    for name, value in (("id", task.id), ("question", task.question), ("kind", task.kind)):
        _text(value, name)
    for name, values in (("answers", task.answers), ("evidence", task.evidence)):
        texts(values, name)
    if not task.question.strip() or not task.id:
        raise ValueError(f"the {'id' if task.question.strip() else 'question'} is empty")
    if len(task.question) > MAX_QUESTION_CHARS:
        raise ValueError(f"the question has more than {MAX_QUESTION_CHARS:,} characters")
    if not isinstance(task.answerable, bool | None):
        raise ValueError(f"'answerable' is {task.answerable!r}, not true, false or null")
    if not isinstance(task.meta, dict):
        raise ValueError("'meta' is not an object")
    if "choices" in task.meta:
        require_choice(task.meta["choices"], task.meta.get("right"))
        return task
    golds = tuple(answer for answer in task.answers if normalise(answer))
    if task.answers and not golds:
        said = ", ".join(repr(answer) for answer in task.answers)
        raise ValueError(f"the accepted answer {said} normalises to nothing; see 'answerable'")
    return task if golds == task.answers else replace(task, answers=golds)


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A field that must hold a list of texts; one text is none, for its letters would be taken for them.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"'{name}' is not a list of texts: {value!r:.80}")
    return tuple(_text(one, name) for one in value)


def flag(value: Any, name: str) -> bool:
    """A field that must be true or false.

    Raises:
        ValueError: it is something else, the text "false" included.
    """
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' is {value!r:.80}, not true or false")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' holds {value!r:.80}, which is no text")
    value.encode()  # half of a surrogate pair cannot be stored
    return value


def rows(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and value of each row of a JSONL file, gzip-compressed or not; broken ones go to
    `problems`.

    Raises:
        UsageError: the file is missing.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                if isinstance(row, dict):
                    yield f"{path}:{number}", row
                else:
                    problems.append(f"{path}:{number}: not an object")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", "point --data or AGENT_DATA at it") from error
    except (EOFError, OSError, zlib.error) as error:
        problems.append(f"{path}: cut off after line {number}: {error}")


def titles_to_ids(corpus: Path, problems: list[str]) -> dict[str, list[str]]:
    """Passage ids by title; rows without them go to `problems`."""
    index: dict[str, list[str]] = {}
    for place, row in rows(corpus, problems):
        try:
            id = str(row["id"])
            index.setdefault(_text(row["title"], "title"), []).append(id)
        except BAD_ROW as error:
            problems.append(f"{place}: {cause(error)}")
    return index


def evidence(
    titles: Iterable[str], index: dict[str, list[str]], among: Iterable[str]
) -> tuple[str, ...]:
    """Ids of the passages with these titles, within the question's own context."""
    context = set(among)
    ids = (i for title in dict.fromkeys(titles) for i in index.get(title, []))
    return tuple(i for i in ids if i in context)


def choices(stem: str, options: Sequence[str], right: int, **fields: Any) -> Task:
    """A multiple-choice task: the options are part of the question, lettered from A.

    `meta` holds `choices` and `right` for the scorer, which knows the letters; the accepted answer is
    the text of the right one.

    Raises:
        ValueError: as `require_choice`.
    """
    require_choice(options, right)
    return Task(
        question="\n".join([" ".join(stem.split()), *lettered(options)]),
        answers=(options[right],),
        answerable=True,
        meta={"choices": list(options), "right": right},
        **fields,
    )


def lettered(options: Sequence[str]) -> list[str]:
    """The options as they stand in a question, a line each: `A) red`."""
    return [f"{chr(ord('A') + number)}) {option}" for number, option in enumerate(options)]


def require_choice(options: Any, right: Any) -> None:
    """Refuse choices that no answer could be scored against.

    Raises:
        ValueError: fewer than two options, or more than there are letters, one that is no text, or
            `right` is not the index of one.
    """
    if not 2 <= len(texts(options, "choices")) <= 26:
        raise ValueError(f"{len(options)} choices where 2 to 26 can be lettered")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise ValueError(f"the right choice is {right!r} of {len(options)}, counted from 0")


def testing_only(name: str, split: Split) -> None:
    """For sets that are for testing alone.

    Raises:
        UsageError: the training part was asked for.
    """
    if split == "train":
        raise UsageError(f"'{name}' is for testing only", "train on another set")


def cause(error: Exception) -> str:
    """What was wrong with a row, for people."""
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    wrong_type = isinstance(error, TypeError | AttributeError)
    return f"a field is of another type: {error}" if wrong_type else str(error)
