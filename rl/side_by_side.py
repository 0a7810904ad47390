"""Two episodes of one question beside each other, as HTML. Everything shown is escaped."""

from __future__ import annotations

from html import escape

from agent.trajectory import Trajectory, Turn
from kg.plain_text import printable

_CHARS = 700


def side_by_side(name: str, before: Trajectory, after: Trajectory, right: bool) -> str:
    """A question with its gold answers and both episodes.

    Args:
        name: of the question, as people find it in the store.
        before, after: episodes.
        right: whether the later one is the right one.
    """
    task = before.task
    gold = " / ".join(task.answers[:3]) or "(to be declined)"
    return (
        f'<p><b>{_text(task.question)}</b> <span class="quiet">{_text(name)}</span><br>'
        f'gold: {_text(gold)}</p><div class="pair">{_episode(before, not right)}'
        f"{_episode(after, right)}</div>"
    )


def _episode(done: Trajectory, right: bool) -> str:
    kind, said = ("good", "right") if right else ("bad", "wrong")
    turns = "".join(_turn(number, turn) for number, turn in enumerate(done.turns, 1))
    answer = done.answer or f"({done.status.value}: {done.stop_reason.value})"
    return (
        f'<div class="episode"><span class="quiet">{_text(done.policy)}, {_text(done.id[:12])}</span>'
        f'{turns}<p class="{kind}"><b>{said}: {_text(answer)}</b></p></div>'
    )


def _turn(number: int, turn: Turn) -> str:
    action = turn.action
    given = action.text or ", ".join(str(value) for value in action.arguments.values())
    parts = [f"<b>{number}. {_text(action.name or action.kind.value)}</b> {_text(given)}"]
    if action.thought:
        parts.insert(0, f"<i>{_text(action.thought)}</i><br>")
    if turn.observation is not None:
        seen = turn.observation
        sources = (f"[{one.number}] {one.title}: {one.text}" for one in seen.sources)
        shown = f"error: {seen.error}" if seen.error else "\n".join(sources) or seen.text
        if shown:
            parts.append(f"<details><summary>found</summary><pre>{_text(shown)}</pre></details>")
    return f'<div class="turn">{"".join(parts)}</div>'


def _text(text: str) -> str:
    """Printable, not too long, escaped."""
    shown = printable(text)
    return escape(shown if len(shown) <= _CHARS else f"{shown[:_CHARS]} …")
