"""The layout that PathQuestion and WorldCup2014 share: tab-separated question, answer and gold path.

An entity is written with underscores. A path is `topic#relation#entity#…`; several paths of a
conjunction are joined by `*`. The answer set ends each entity with a slash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.task import Task
from eval.benchmarks.base import BAD_ROW, Split, cause, checked, split_of
from kg.errors import UsageError

_END = "<end>"


def path_tasks(path: Path, kind: str, split: Split) -> tuple[list[Task], list[str]]:
    """Tasks of a file whose topic falls into `split`, and the rows that give none.

    Raises:
        UsageError: the file cannot be read.
    """
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            task = checked(_task(line, kind))
        except BAD_ROW as error:
            problems.append(f"{path}:{number}: {cause(error)}")
            continue
        if task.id in tasks:
            problems.append(f"{path}:{number}: the question is there already")
        elif split_of(task.meta["topics"][0]) == split:
            tasks[task.id] = task
    return list(tasks.values()), problems


def _task(line: str, kind: str) -> Task:
    columns = line.split("\t")
    if len(columns) < 3:
        raise ValueError(f"{len(columns)} columns where three are the least")
    question, answer, gold = columns[:3]
    steps = [[step for step in path.split("#") if step != _END] for path in gold.split("*")]
    named = columns[3].split("/") if len(columns) > 3 else _answer_set(answer)
    answers = [part for part in named if part] or [answer]
    return Task(
        id=f"{kind}-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
        question=question.replace("_", " ").replace(" ?", "?"),
        answers=tuple(name.replace("_", " ") for name in answers),
        answerable=True,
        kind=kind,
        meta={"topics": [path[0] for path in steps], "paths": steps},
    )


def _answer_set(column: str) -> list[str]:
    """All answers of `one(one/other/)`; a name may hold brackets, so the one is told by standing in the
    set.

    Raises:
        ValueError: there is a set without the one answer.
    """
    if not column.endswith("/)"):
        return [column]
    for place, sign in enumerate(column):
        names = column[place + 1 : -1].split("/")
        if sign == "(" and column[:place] in names:
            return names
    raise ValueError(f"the answers '{column:.80}' are no answer and its set in brackets")
