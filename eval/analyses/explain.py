"""One episode in plain words: what it knew, asked and saw, what changed its mind, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agent.trajectory import ActionKind, Status, Trajectory, Turn
from eval.analyses.knowing import knew
from eval.analyses.probed import Probed
from eval.analyses.turning import turned
from eval.metrics import contains
from eval.sample import score_one
from tools.base import Verdict


def explain(done: Trajectory, scorer: str = "squad2", probed: Probed | None = None) -> str:
    """A report of a few sentences a turn; gold answers, where known, tell what went wrong.

    Args:
        done: the episode; its task may carry the label of `agent probe`.
        scorer: right and wrong are those of an evaluation under it.
        probed: how likely the gold answer was at each turn.
    """
    lines = [
        f"It was asked: {_one_line(done.task.question)}",
        f"What it knew: {knew(done, probed)}",
        "",
    ]
    for number, turn in enumerate(done.turns, 1):
        lines += [f"{number}. {sentence}" for sentence in _turn(done, turn, number - 1)]
    changed = [f"- {sentence}" for sentence in turned(done, probed)]
    lines += ["", "What changed its mind:", *(changed or ["- Nothing that is recorded."])]
    return "\n".join([*lines, "", *_end(done), *_verdict(done, scorer)])


def _turn(done: Trajectory, turn: Turn, place: int) -> Iterator[str]:
    action, seen = turn.action, turn.observation
    if action.kind is ActionKind.MALFORMED:
        yield f"It wrote nothing that can be carried out ({_one_line(action.text)}) and was told so."
    elif action.name == "judge":
        helpful = seen is not None and seen.verdict is Verdict.HELPFUL
        yield ("It judged that this helps." if helpful else "It judged that this does not help.")
    elif action.kind is ActionKind.TOOL:
        asked = ", ".join(str(value) for value in action.arguments.values())
        again = _asked_before(done, turn, place)
        result = _seen(turn)
        yield _sentence(f"It used {action.name} with \u201c{_one_line(asked)}\u201d{again}{result}")
    elif action.kind is ActionKind.ANSWER:
        forced = " because a budget was spent" if turn.forced else ""
        yield f"It answered{forced}, {_certainty(done, turn)}."
    else:
        yield _sentence(f"It declined to answer: {_one_line(action.text) or 'no reason given'}")


def _asked_before(done: Trajectory, turn: Turn, place: int) -> str:
    before = [(t.action.name, t.action.arguments) for t in done.turns[:place]]
    return ", as it had before," if (turn.action.name, turn.action.arguments) in before else ""


def _seen(turn: Turn) -> str:
    seen = turn.observation
    if seen is None:
        return ""
    if seen.error:
        return f", which failed: {_one_line(seen.error)}"
    if not seen.sources:
        return " and got: " + (_one_line(seen.text) or "nothing")
    titles = ", ".join(f"[{source.number}] {source.title or source.id}" for source in seen.sources)
    astray = " (the search was made to go wrong)" if seen.misled else ""
    return f" and was shown {titles}{astray}"


def _certainty(done: Trajectory, turn: Turn) -> str:
    """The geometric mean probability of the reply's tokens, in words."""
    values = done.logprobs[turn.reply.start : turn.reply.stop]
    values = values[~np.isnan(values)]
    if not values.size:
        return "with a certainty that is not known"
    sure = float(np.exp(values.mean()))
    word = "quite sure" if sure > 0.9 else "fairly sure" if sure > 0.6 else "unsure"
    return f"{word} of its words ({sure:.2f} a token)"


def _end(done: Trajectory) -> Iterator[str]:
    if done.status is Status.FAILED:
        yield f"It failed: {_one_line(done.error)}"
    elif done.status is Status.ABSTAINED:
        yield "It gave no answer."
    else:
        yield f"Its answer: {_one_line(done.answer) or '(empty)'} ({done.stop_reason.value})"
        yield _support(done)
    if done.rewards:
        values = ", ".join(f"{name} {value:g}" for name, value in done.rewards.items())
        yield f"Rewards attached to it: {values}."


def _support(done: Trajectory) -> str:
    cited = [source for source in done.sources if source.number in done.citations]
    if not cited:
        return "It cites nothing."
    holding = [source for source in cited if contains(source.text, done.answer)]
    numbers = ", ".join(f"[{source.number}]" for source in cited)
    if holding:
        return f"The answer stands in what it cites ({numbers})."
    return f"The answer does not stand in what it cites ({numbers})."


def _verdict(done: Trajectory, scorer: str) -> Iterator[str]:
    """Against the gold answer and evidence, where they are known, as `eval.sample` scores it."""
    task, scored = done.task, score_one("", scorer, done.task, done)
    if scored.excluded:
        return
    if not scored.answerable:
        yield "Right: it should decline." if scored.right else f"Wrong: {_undeclined(done)}."
    elif scored.right == 1:
        yield "Right."
    else:
        yield f"Wrong: the answer is {task.answers[0]}. {_cause(done)}"


def _undeclined(done: Trajectory) -> str:
    silent = done.status is Status.FAILED or not done.answer.strip()
    ended = ", and ended without an answer or an abstention" if silent else ""
    return f"it should have declined{ended}"


def _cause(done: Trajectory) -> str:
    if done.status is Status.FAILED:
        return "It ended in an error."
    gold = set(done.task.evidence)
    shown = {source.id for source in done.sources}
    if not gold:
        held = any(contains(s.text, a) for s in done.sources for a in done.task.answers)
        return "It was shown the answer." if held else "It was never shown the answer."
    if not gold & shown:
        return "A failure of search: it was shown none of the passages that hold it."
    if gold - shown:
        return f"A failure of search: {len(gold & shown)} of {len(gold)} passages were shown."
    if done.abstained:
        return "A failure of judgement: it was shown all it needed, and declined."
    if not done.answer.strip():
        return "It was shown all it needed, and gave no answer."
    return "A failure of reading: it was shown all it needed."


def _sentence(text: str) -> str:
    """With one full stop, whether what it ends with is a sentence already or not."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _one_line(text: str) -> str:
    return " ".join(text.split())
