"""A question that went wrong becomes a task that is asked again from now on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.corpus_index import find_index
from agent.settings import Settings
from agent.task import Task
from agent.trajectory import Trajectory
from eval.benchmarks.base import BAD_ROW, cause, checked, lettered, rows
from eval.benchmarks.own import task_of
from eval.folder import read_header
from eval.metrics import normalise
from kg.errors import TurnwiseError, UsageError


@dataclass(frozen=True)
class Origin:
    """What the question of an episode was asked over, and what scored it.

    Attributes:
        scorer: its name; empty where it is not known.
        corpus: paths; empty for the bundled library.
    """

    scorer: str = ""
    corpus: tuple[str, ...] = ()


def origin_of(
    done: Trajectory, store: str, corpus: Sequence[Path] = (), named: bool = False
) -> Origin:
    """The origin of an episode: what its run folder says, where its store lies in one.

    Args:
        done: the episode.
        store: path or URL of the store that holds it.
        corpus: searched by the settings; counts where there is no run folder, or it tells no corpus.
        named: this corpus was named for the episode, so that it counts in any case.

    Raises:
        UsageError: the run folder is damaged.
    """
    given = tuple(str(path.resolve()) for path in corpus)
    run = Path(store.removeprefix("sqlite:///")).parent
    if not (run / "run.json").is_file():
        return Origin(corpus=given)
    sets = [one for one in read_header(run).sets if done.group.startswith(f"{one.name}:")]
    if not sets:
        return Origin(corpus=given)
    return Origin(sets[0].scorer, given if named else tuple(sets[0].corpus) or given)


def searched_elsewhere(done: Trajectory, origin: Origin, settings: Settings) -> str:
    """What is to be said when the episode searched other passages than the origin's; else empty."""
    digest = done.versions.get("search", "").partition(":")[0]
    if not digest:
        return ""
    from tools.search.manifest import read_manifest

    what = ", ".join(origin.corpus) or "the bundled library"
    said = f"note: the episode did not search {what} as it is now; --corpus names what it searched"
    try:
        corpus = tuple(map(Path, origin.corpus))
        index = find_index(corpus, settings.indexes_dir, settings.search.mode)
        return "" if index is not None and read_manifest(index).digest == digest else said
    except TurnwiseError:
        return said


def add_regression(
    done: Trajectory,
    answers: Sequence[str],
    unanswerable: bool,
    out: Path,
    origin: Origin = Origin(),
) -> bool:
    """Append the episode's question to a file that `agent eval` runs.

    Args:
        done: the episode.
        answers: accepted answers; the task's own when there are none.
        unanswerable: the right reply is to decline.
        out: JSONL file, made when it is not there.
        origin: written with the question, so that it is asked over the same corpus and scored the same.

    Returns:
        False when the file holds the question with these right answers already.

    Raises:
        UsageError: no right answer is known, it could not be scored, the file holds questions of another
            origin or another question or answer under this id, or it cannot be written.
    """
    row = _row(done, answers, unanswerable, origin)
    try:
        task = checked(task_of(row))
    except BAD_ROW as error:
        raise UsageError(f"the question cannot be scored: {cause(error)}", "--answer") from error
    if (old := _held(out, row).get(task.id)) is not None:
        _require_same_question(old, task, out)
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return True


def _row(
    done: Trajectory, answers: Sequence[str], unanswerable: bool, origin: Origin
) -> dict[str, Any]:
    task = done.task
    if answers and unanswerable:
        raise UsageError("a question is either answered or unanswerable", "drop one of the two")
    golds = [] if unanswerable else list(answers) or list(task.answers)
    declines = unanswerable or (not answers and task.answerable is False)
    if not golds and not declines:
        raise UsageError("the right answer is not known", 'add --answer "…" or --unanswerable')
    row = {
        "id": task.id,
        "question": task.question,
        "answers": golds,
        "answerable": not declines,
        "kind": task.kind,
        "evidence": list(task.evidence),
        "meta": {"episode": done.id, "policy": done.policy, "said": done.answer},
    }
    row |= {"scorer": origin.scorer} if origin.scorer else {}
    row |= {"corpus": list(origin.corpus)} if origin.corpus else {}
    return row if declines or "choices" not in task.meta else {**row, **_choice(task, answers)}


def _choice(task: Task, answers: Sequence[str]) -> dict[str, Any]:
    """Stem, choices and the right one: what `own` letters again."""
    options = list(task.meta["choices"])
    lines = "\n" + "\n".join(lettered(options))
    named = {normalise(answer) for answer in answers}
    right = next((n for n, one in enumerate(options) if normalise(one) in named), None)
    if answers and right is None:
        raise UsageError(
            f"the answer is none of the choices: {', '.join(answers)}",
            f'--answer "{options[0]}", or the text of another choice',
        )
    return {
        "question": task.question.removesuffix(lines),
        "answers": [],
        "choices": options,
        "right": task.meta["right"] if right is None else right,
    }


def _require_same_origin(old: dict[str, Any], row: dict[str, Any], out: Path) -> None:
    """A file of questions has one corpus and one scorer."""
    for name in ("scorer", "corpus"):
        if (old.get(name) or None) != (row.get(name) or None):
            raise UsageError(
                f"{out} holds questions with another {name}: {old.get(name) or 'the default'}, "
                f"this one's is {row.get(name) or 'the default'}",
                "--out ANOTHER.jsonl",
            )


def _held(out: Path, row: dict[str, Any]) -> dict[str, Task]:
    """The questions of a file by id, as far as `agent eval` reads them; all of the row's origin.

    Raises:
        UsageError: one is of another origin.
    """
    found: dict[str, Task] = {}
    for _, old in rows(out, []) if out.is_file() else ():
        _require_same_origin(old, row, out)
        try:
            task = checked(task_of(old))
        except BAD_ROW:
            continue
        found.setdefault(task.id, task)
    return found


def _require_same_question(old: Task, new: Task, out: Path) -> None:
    """An id stands for one question with its right answers."""
    if (old.question, set(old.answers)) != (new.question, set(new.answers)):
        raise UsageError(
            f"{out} holds '{new.id}' as {_short(old)}, and now it is {_short(new)}",
            f"take that line out of {out} first, or --out ANOTHER.jsonl",
        )


def _short(task: Task) -> str:
    return f"'{task.question}' ({', '.join(task.answers) or 'unanswerable'})"
