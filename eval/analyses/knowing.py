"""What an episode's policy knew before it was shown anything, as far as that is recorded."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

from agent.trajectory import ActionKind, Trajectory
from eval.analyses.probed import Probed

_LABEL = "known"  # in the meta of a task: what `agent probe` found


class _Label(BaseModel):
    policy: str
    samples: int
    right: float
    known: bool


def knew(done: Trajectory, probed: Probed | None = None) -> str:
    """Sentences: what closed-book samples and probes say, and whether it answered without looking.

    A label of another policy says nothing of this one; versions of weights are not looked at.

    Args:
        done: its task may carry the label of `agent probe`.
        probed: how likely the gold answer was.
    """
    label = _label(done)
    own = label if label and _name(label.policy) == _name(done.policy) else None
    said = [*_closed_book(label, own), *_before(probed)]
    if not said:
        said = ["Whether it knows the answer by itself is not recorded (agent probe asks)."]
    return " ".join([*said, *_began(done, own)])


def _label(done: Trajectory) -> _Label | None:
    try:
        return _Label.model_validate(done.task.meta.get(_LABEL))
    except ValidationError:
        return None


def _name(policy: str) -> str:
    return policy.rpartition("@")[0] or policy


def _closed_book(label: _Label | None, own: _Label | None) -> Iterator[str]:
    if label is None:
        return
    right = f"Closed-book {100 * label.right:.0f} % of {label.samples} samples"
    if own is None:
        yield f"{right} of another policy ({label.policy}) were right."
    else:
        meaning = "it knows" if label.known else "it does not know"
        yield f"{right} were right: {meaning} the answer by itself."


def _before(probed: Probed | None) -> Iterator[str]:
    if probed is not None:
        sure = probed.probabilities[0]
        answer = f"\u201c{probed.gold_answer}\u201d"
        yield f"Before it did anything {answer} had a probability of {sure:.2f} a token."


def _began(done: Trajectory, label: _Label | None) -> Iterator[str]:
    """Whether the first reply that can be carried out is an answer or a call."""
    kinds = [turn.action.kind for turn in done.turns]
    first = next((kind for kind in kinds if kind is not ActionKind.MALFORMED), None)
    if first is ActionKind.TOOL:
        yield "It looked it up" + (", although it knows it." if label and label.known else ".")
    elif first is ActionKind.ANSWER:
        blind = label is not None and not label.known
        yield "It answered without a search" + (" what it does not know." if blind else ".")
    elif first is ActionKind.ABSTAIN:
        yield "It declined without a search."
