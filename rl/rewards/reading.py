"""What rewards read in a trajectory: the answer, results, verdicts, thoughts, calls. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from agent.trajectory import Action, ActionKind, Status, Trajectory, Turn
from eval.metrics import normalise, scorer
from rl.rewards.base import RewardError, unit
from rl.rewards.context import RewardContext
from tools.base import Observation, Verdict

JUDGE = "judge"


class Result(NamedTuple):
    """What a tool gave back, and on which turn."""

    turn: int
    observation: Observation


class Judged(NamedTuple):
    """A verdict: on which turn it was given, and on the result of which turn."""

    turn: int
    of: int
    verdict: Verdict


def final_answer(trajectory: Trajectory) -> str:
    """The answer; empty when the episode failed or the policy declined."""
    if trajectory.status is Status.FAILED or trajectory.abstained:
        return ""
    return trajectory.answer.strip()


def gold(trajectory: Trajectory) -> tuple[str, ...]:
    """The accepted answers; none for a task that has no answer.

    Raises:
        RewardError: the task should have answers and has none.
    """
    task = trajectory.task
    if not task.answers and task.answerable is not False:
        raise RewardError(f"task {task.id} has no gold answers", trajectory.id, last(trajectory))
    return task.answers


def last(trajectory: Trajectory) -> int | None:
    """Index of the last turn; None without turns."""
    return len(trajectory.turns) - 1 if trajectory.turns else None


def is_right(trajectory: Trajectory, by: str) -> bool:
    """Exact match under the scorer named; for a task without an answer: whether it was declined.

    Raises:
        RewardError: the task should have answers and has none.
    """
    answers, said = gold(trajectory), final_answer(trajectory)
    if trajectory.task.answerable is False:
        return trajectory.abstained
    return bool(said) and scorer(by)(said, answers).em == 1.0


def thought_of(turn: Turn) -> str:
    """Reasoning before the action, in the reply or hidden by the server."""
    return (turn.action.thought or turn.reasoning).strip()


def is_call(turn: Turn) -> bool:
    """Whether the turn calls a tool; a verdict is no call."""
    return turn.action.kind is ActionKind.TOOL and turn.action.name != JUDGE


def calls(trajectory: Trajectory) -> Iterator[tuple[int, Action]]:
    """Turn index and action of every tool call."""
    return ((t, turn.action) for t, turn in enumerate(trajectory.turns) if is_call(turn))


def query_words(action: Action) -> frozenset[str]:
    """Normalised words of a call's textual arguments."""
    text = " ".join(value for value in action.arguments.values() if isinstance(value, str))
    return frozenset(normalise(text).split())


def results(trajectory: Trajectory, tools: Collection[str] | None = None) -> Iterator[Result]:
    """What tools gave back, errors included; verdicts and the runtime's own messages are none.

    Args:
        trajectory: of any policy.
        tools: whose results; None for all.
    """
    for t, turn in enumerate(trajectory.turns):
        wanted = is_call(turn) and (tools is None or turn.action.name in tools)
        if wanted and turn.observation is not None and turn.observation.tool:
            yield Result(t, turn.observation)


def verdicts(trajectory: Trajectory) -> Iterator[Judged]:
    """The first verdict on each result; another one on the same result changes nothing."""
    about: int | None = None
    for t, turn in enumerate(trajectory.turns):
        seen = turn.observation
        if seen is None:
            continue
        if seen.verdict is not None and about is not None:
            yield Judged(t, about, seen.verdict)
            about = None
        elif is_call(turn) and seen.tool:
            about = t


def passages(observation: Observation) -> list[str]:
    """What an observation shows: title and text of each source, else its text."""
    if observation.error is not None:
        return []
    if observation.sources:
        return [f"{source.title}\n{source.text}" for source in observation.sources]
    return [observation.text] if observation.text else []


def shown_ids(observation: Observation) -> set[str]:
    """Ids of the sources that an observation shows."""
    return {source.id for source in observation.sources}


def judged(trajectory: Trajectory, criterion: str, text: str, context: RewardContext) -> float:
    """How far the context's judge finds a criterion met, 0 to 1.

    Raises:
        RewardError: there is no judge, or it gave no such number; names the trajectory, so that one
            odd reply is no matter of the rest of its group.
    """
    if context.judge is None:
        raise RewardError("no judge policy", trajectory.id, last(trajectory))
    try:
        score = context.judge(criterion, text)
    except RewardError as error:
        raise RewardError(error.message, trajectory.id, last(trajectory)) from error
    return unit(score, "the judge's score", trajectory.id, last(trajectory))


def meta_text(trajectory: Trajectory, key: str) -> str:
    """A text in the task's `meta`.

    Raises:
        RewardError: it is not there.
    """
    value = trajectory.task.meta.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RewardError(f"task {trajectory.task.id} has no meta['{key}']", trajectory.id)
    return value.strip()


def meta_texts(trajectory: Trajectory, key: str) -> list[str]:
    """A list of texts or numbers in the task's `meta`; empty when it is not there.

    Raises:
        RewardError: it is no such list.
    """
    value = trajectory.task.meta.get(key, [])
    if not isinstance(value, list | tuple) or not all(
        isinstance(v, str | int | float) for v in value
    ):
        what = f"meta['{key}'] of task {trajectory.task.id} is no list of texts: {value!r:.60}"
        raise RewardError(what, trajectory.id)
    return [str(one) for one in value]
