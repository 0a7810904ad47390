"""What changed an episode's mind, from what is recorded of it, in plain words.

Four signs: a verdict that a result does not help, another query after a result, an answer that it held
and gave up, and, with probes, the turn that raised the gold answer's chance most. An answer that it held
is its last, one that the runtime refused, or one that a thought states ("the answer may be …").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from agent.formats import FORMATS, make_format
from agent.policies.base import Completion
from agent.trajectory import Action, ActionKind, Trajectory, Turn
from eval.analyses.probed import Probed
from eval.metrics import contains, normalise
from tools.base import Observation, Toolbox, Verdict

_JUDGE = "judge"
_STATED = re.compile(
    r"\banswer\s+(?:is|was|(?:may|might|could|must|should|would)\s+be|seems\s+to\s+be)\s+"
    r"(?:(?:probably|likely|perhaps|maybe)\s+)?"
    r"(?!(?:not|in|on|to|still|unknown|unclear|missing|here|there)\b)[\"'*\u201c]*"
    r"((?:[^.,;:!?\n\"*\u201d]|[.,](?=\d)){1,80})",
    re.IGNORECASE,
)


class _Held(NamedTuple):
    """An answer that stood at a turn (from 1)."""

    turn: int
    text: str


def turned(done: Trajectory, probed: Probed | None = None) -> list[str]:
    """A sentence for each sign, in the order of the turns; none where nothing is recorded."""
    found = [*_verdicts(done), *_queries(done), *_answers(done), *_taught(probed)]
    return [f"Turn {turn}: {text}" for turn, text in sorted(found, key=lambda one: one[0])]


def _verdicts(done: Trajectory) -> Iterator[tuple[int, str]]:
    for number, turn in enumerate(done.turns, 1):
        if turn.observation is not None and turn.observation.verdict is Verdict.UNHELPFUL:
            yield number, "it put aside what it was shown: that changed its course."


def _queries(done: Trajectory) -> Iterator[tuple[int, str]]:
    """Another query than before it was shown a result, and the result's words that it took up."""
    calls = [
        (number, turn)
        for number, turn in enumerate(done.turns, 1)
        if turn.action.kind is ActionKind.TOOL and turn.action.name != _JUDGE
    ]
    known = set(normalise(done.task.question).split())
    for (before, old), (now, new) in pairwise(calls):
        known |= set(normalise(_asked(old)).split())
        if old.observation is None or _asked(old) == _asked(new):
            continue
        shown = set(normalise(_shown(old.observation)).split())
        words = dict.fromkeys(normalise(_asked(new)).split())
        taken = " ".join(word for word in words if word in shown - known)
        source = f", with \u201c{taken}\u201d from that result" if taken else ""
        yield (
            now,
            f"after the result of turn {before} it asked for \u201c{_asked(new)}\u201d instead of "
            f"\u201c{_asked(old)}\u201d{source}.",
        )


def _answers(done: Trajectory) -> Iterator[tuple[int, str]]:
    held = [one for number, turn in enumerate(done.turns, 1) for one in _held(done, number, turn)]
    for old, new in pairwise(held):
        if not _same(old.text, new.text):
            yield new.turn, f"it gave up \u201c{old.text}\u201d for \u201c{new.text}\u201d."
    if held and done.abstained:
        yield len(done.turns), f"it gave up \u201c{held[-1].text}\u201d and declined."


def _held(done: Trajectory, number: int, turn: Turn) -> Iterator[_Held]:
    """The answers of a turn: those that its reasoning states, then its own, carried out or refused."""
    for stated in _STATED.finditer(f"{turn.reasoning}\n{turn.action.thought}"):
        if text := _one_line(stated[1]):
            yield _Held(number, text)
    action = turn.action
    if action.kind is ActionKind.MALFORMED:
        action = _refused(done, turn)
    if action.kind is ActionKind.ANSWER and action.text.strip():
        yield _Held(number, _one_line(action.text))


def _refused(done: Trajectory, turn: Turn) -> Action:
    """A malformed reply as its format reads it: a well-formed answer may have been refused."""
    name = done.versions.get("format", "")
    if name not in FORMATS:
        return turn.action
    return make_format(name, Toolbox()).parse(Completion(turn.text))


def _taught(probed: Probed | None) -> Iterator[tuple[int, str]]:
    if probed is None or len(probed.values) < 2:
        return
    gains = [after - before for before, after in pairwise(probed.values)]
    best = max(range(len(gains)), key=gains.__getitem__)
    if gains[best] > 0:
        rise = "from {:.2f} to {:.2f} a token".format(*probed.probabilities[best : best + 2])
        yield best + 1, f"it gained most: \u201c{probed.gold_answer}\u201d went {rise}."


def _asked(turn: Turn) -> str:
    return _one_line(", ".join(str(value) for value in turn.action.arguments.values()))


def _shown(seen: Observation) -> str:
    return " ".join([seen.text, *(f"{one.title} {one.text}" for one in seen.sources)])


def _same(a: str, b: str) -> bool:
    return contains(a, b) or contains(b, a)


def _one_line(text: str) -> str:
    return " ".join(text.split())
