"""Gold-answer probes: what is forced after a turn to see how likely the gold answer has become.

Source: IGPO (arXiv 2510.14967): a fixed wrapper and the gold answer follow the context of a policy
call; only the answer's tokens count, the wrapper conditions. A token that straddles the border of the
two counts as answer. Where a budget was spent, the runtime opened the answer itself: the probe follows
what stood there before, so that it reads as that of an episode with the same turns and budget left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.formats import FORMATS, TagsFormat
from agent.policies.chat import ChatTemplate
from agent.task import Task
from agent.trajectory import Span, Trajectory, gather
from kg.errors import UsageError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wrapper:
    """Text around the forced answer, before it as the action format opens an answer.

    Attributes:
        before, after: not scored; `after` is computed only to be complete and changes no score.
    """

    before: str = "<answer>"
    after: str = ""


@dataclass(frozen=True)
class Probe:
    """Tokens to force, and which of them are the answer's.

    Attributes:
        ids: int64[n].
        answer: bool[n].
    """

    ids: Ids
    answer: npt.NDArray[np.bool_]


def opening_of(trajectory: Trajectory) -> str:
    """What opens an answer in the action format that an episode was played in."""
    played = FORMATS.get(str(trajectory.versions.get("format", TagsFormat.name)))
    return played.final_prefix if played else ""


def probed_context(trajectory: Trajectory, number: int) -> Ids:
    """int64[n]: what is before the probe of a turn: what its call saw, without what the runtime wrote
    behind the last observation for want of budget, to open an answer or to ask for one."""
    turn = trajectory.turns[number]
    context = list(turn.context)
    if turn.forced and number:
        end = trajectory.turns[number - 1].observation_span.stop
        while context and context[-1].stop > end:
            last = context.pop()
            if last.start < end:
                context.append(Span(last.start, end))
    return gather(trajectory.token_ids, context).astype(np.int64)


def step_answers(task: Task) -> tuple[str, ...]:
    """What the steps of a question find (`Task.meta["steps"]`), each answer once and in its first form
    that is not blank; of a question without known steps its gold answer, and none where that is to
    decline. What is malformed in `meta` is passed over: nobody checks it."""
    gold = _first(task.answers)
    if not gold:
        return ()
    steps = task.meta.get("steps")
    found = [_first(step.get("answers")) for step in _listed(steps) if isinstance(step, dict)]
    return tuple(dict.fromkeys(filter(None, found))) or (gold,)


def _first(answers: object) -> str:
    texts = (one for one in _listed(answers) if isinstance(one, str))
    return next((one for one in texts if one.strip()), "")


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def make_probe(template: ChatTemplate, answer: str, wrapper: Wrapper | None = None) -> Probe:
    """The probe of one gold answer.

    Raises:
        UsageError: the answer is empty or has no tokens, or the tokenizer cannot tell where its tokens
            come from.
    """
    around = wrapper or Wrapper()
    if not answer.strip():
        raise UsageError("a gold answer is empty: nothing to probe")
    text = around.before + answer + around.after
    tokenizer: Any = template.tokenizer
    try:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise UsageError(
            f"the tokenizer of '{tokenizer.name_or_path}' tells no offsets",
            "use a model with a fast tokenizer",
        ) from error
    begin, end = len(around.before), len(around.before) + len(answer)
    spans = made["offset_mapping"]
    inside = np.array([start < end and stop > begin for start, stop in spans], dtype=np.bool_)
    ids = np.asarray(made["input_ids"], dtype=np.int64)
    if not inside.any():
        raise UsageError(f"the gold answer {answer!r} has no tokens: nothing to probe")
    last = int(np.flatnonzero(inside)[-1]) + 1  # what follows the answer cannot change its score
    return Probe(ids[:last], inside[:last])
