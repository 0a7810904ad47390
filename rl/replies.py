"""Right replies: what a last call should have replied, given what it was shown.

Sound is what the policy could have written from the passages before it, and only where the runtime would
have taken an answer. Anything else would teach to make things up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.formats import FORMATS, TagsFormat
from agent.policies.chat import ChatTemplate
from agent.task import Task
from agent.trajectory import ActionKind, Trajectory
from eval.metrics import contains, normalise
from rl.guidance.expert import overlap
from rl.probes import opening_of
from tools.base import Source, Toolbox, Verdict

#: Key of `Task.meta` under which the right answer lies that somebody gave to a logged episode.
CORRECTION = "correction"
_ENDS = (ActionKind.ANSWER, ActionKind.ABSTAIN)
_YES_NO = ("yes", "no", "true", "false")  # found anywhere, such words support nothing
_WORDS = 2  # of the question in a passage that is to support an answer, as the expert wants it


@dataclass(frozen=True)
class RightReply:
    """A reply in an action format.

    Attributes:
        text: as a policy would write it.
        answer: the answer in it.
        ids: int64[n], its tokens.
        learnt: bool[n]: those behind the choice to answer: behind the opening `<answer>`, or, where a
            format has none, behind the first token.
    """

    text: str
    answer: str
    ids: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_]


def right_reply(trajectory: Trajectory, template: ChatTemplate) -> RightReply | None:
    """The right reply in the place of a trajectory's last one.

    A correction that somebody attached must be in a passage that the last call saw. A gold answer: all
    gold passages of the task are among these, and one of them holds it; a yes or no, and a count, need
    not be in one. Of a task that names no gold passage, any that holds the answer and speaks of the
    question.

    Args:
        trajectory: of the task.
        template: whose tokens they are.

    Returns:
        None where nothing right is supported, or where the runtime takes no answer: after a verdict "no"
        and no call since. Or where the last reply is not the policy's own choice to end, or begins with
        a thought.
    """
    if obstacle(trajectory) or trajectory.turns[-1].action.thought:
        return None
    found = _supported(trajectory.task, shown(trajectory))
    return None if found is None else reply_with(trajectory, *found, template)


def obstacle(trajectory: Trajectory) -> str:
    """Why no other reply can stand in the place of the last one; "" where one can."""
    last = trajectory.turns[-1]
    if last.action.kind not in _ENDS or last.forced or not last.sampled:
        return "it does not end in an answer of its own"
    if trajectory.versions.get("format", TagsFormat.name) not in FORMATS:
        return "its action format is not known here"
    if _rejected(trajectory):
        return "it ended behind a verdict 'no', where no answer is taken"
    return ""


def _supported(task: Task, seen: Sequence[Source]) -> tuple[str, list[Source]] | None:
    """An answer and the sources to cite, or None."""
    correction = task.meta.get(CORRECTION)
    if isinstance(correction, str) and correction.strip():
        return _held([correction.strip()], seen)
    answers = [answer.strip() for answer in task.answers if answer.strip()]
    if not answers or task.answerable is False:
        return None
    if not task.evidence:
        spoken = [s for s in seen if overlap(task.question, f"{s.title} {s.text}") >= _WORDS]
        return _held([one for one in answers if normalise(one) not in _YES_NO], spoken)
    gold = [source for source in seen if source.id in task.evidence]
    if not set(task.evidence) <= {source.id for source in gold}:
        return None
    if found := _held(answers, gold):
        return found
    free = normalise(answers[0]) in _YES_NO or task.kind == "counting"
    return (answers[0], gold) if free else None


def _held(answers: Sequence[str], sources: Sequence[Source]) -> tuple[str, list[Source]] | None:
    found = ((one, [s]) for one in answers for s in sources if holds(s, one))
    return next(found, None)


def _rejected(trajectory: Trajectory) -> bool:
    """Whether the last thing that came back is a verdict "no"."""
    seen = [turn.observation for turn in trajectory.turns[:-1]]
    back = [one.verdict for one in seen if one is not None and one.tool]
    return back[-1:] == [Verdict.UNHELPFUL]


def reply_with(
    trajectory: Trajectory, answer: str, sources: Sequence[Source], template: ChatTemplate
) -> RightReply:
    """A last reply in the trajectory's action format.

    Args:
        trajectory: tells the format.
        answer: as text; what could pass for an action or a special token in it is broken.
        sources: to cite.
        template: tokenizer.
    """
    said = TagsFormat(Toolbox()).neutralise(template.neutralise(answer.strip()))
    numbers = ", ".join(str(n) for n in sorted({source.number for source in sources}))
    text, opening = f"{said} [{numbers}]", opening_of(trajectory)
    if opening:
        text = f"{opening}{text}</answer>"
        ids = template.encode(text)
    else:
        ids = [*template.encode(text), template.eos_id]  # plain text ends with the turn
    given = 0
    for one, other in zip(ids, template.encode(opening) or ids[:1], strict=False):
        if one != other:
            break
        given += 1
    return RightReply(text, said, np.asarray(ids, dtype=np.int64), np.arange(len(ids)) >= given)


def shown(trajectory: Trajectory) -> list[Source]:
    """The sources that the last call saw, the latest observation first."""
    found: list[Source] = []
    for turn in reversed(trajectory.turns[:-1]):
        start = turn.observation_span.start
        within = any(s.start <= start < s.stop for s in trajectory.turns[-1].context)
        if turn.observation is not None and within:
            found += turn.observation.sources
    return found


def holds(source: Source, answer: str) -> bool:
    """Whether a passage or its title says an answer."""
    return contains(f"{source.title}\n{source.text}", answer)
