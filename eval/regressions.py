"""A question that went wrong becomes a task that is asked again from now on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from agent.trajectory import Trajectory
from eval.benchmarks.base import rows
from kg.errors import UsageError


def add_regression(done: Trajectory, answers: Sequence[str], unanswerable: bool, out: Path) -> bool:
    """Append the episode's question to a file that `agent eval` runs.

    Args:
        done: the episode.
        answers: accepted answers; the task's own when there are none.
        unanswerable: the right reply is to decline.
        out: JSONL file, made when it is not there.

    Returns:
        False when the file holds the question already.

    Raises:
        UsageError: no right answer is known, or the file cannot be written.
    """
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
    if out.is_file() and any(old.get("id") == task.id for _, old in rows(out, [])):
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return True
