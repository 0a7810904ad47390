"""Episodes whose first search goes wrong on purpose (`Episode.misled`).

The search itself is asked, and shows the best passages without those that hold the task's gold
evidence or answer: what an engine gives that missed. Asked the same once more it misses again; other
words work. What a search would be made to withhold follows from the task, and whether it is the first
one from the turns, so that an episode that is taken up again (after a kill, or from its record) goes on
as it would have.
"""

from __future__ import annotations

from agent.episode import Episode
from agent.task import Task
from agent.trajectory import Turn
from tools.withheld import Withheld

#: The tool that is made to go wrong.
TOOL = "search"
#: Key of `Task.meta`: ids of passages that tell the gold evidence in other words.
RESTATED = "restated"


def can_mislead(task: Task) -> bool:
    """Whether it is known what a search for this task must not show: it has gold evidence."""
    return bool(task.evidence)


def withheld_from(task: Task) -> Withheld:
    """What a search that goes wrong does not show of a task's gold."""
    ids = (*task.evidence, *task.meta.get(RESTATED, ()))
    return Withheld.of(ids, task.answers, task.question)


def withheld_now(episode: Episode) -> Withheld | None:
    """What the pending call may not show; None where it is as any other."""
    turn = episode.pending
    if not episode.misled or turn is None or turn.action.name != TOOL:
        return None
    words = _words(turn)
    if any(_searched(earlier) and _words(earlier) != words for earlier in episode.turns):
        return None
    return withheld_from(episode.task)


def _words(turn: Turn) -> str:
    """What was searched for; spelling of case and spaces aside."""
    return " ".join(" ".join(map(str, turn.action.arguments.values())).casefold().split())


def _searched(turn: Turn) -> bool:
    """Whether a turn got a result of a search; a call that failed got none."""
    seen = turn.observation
    return seen is not None and seen.tool == TOOL and seen.error is None
