"""Trajectories for people: plain text for the terminal, one self-contained HTML page for the rest.

The page loads nothing. Everything a policy, tool or document wrote is data in it: embedded as JSON,
put on the page as text nodes only, under a policy that forbids every connection.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from agent.trajectory import Trajectory, Turn
from kg.plain_text import printable
from kg.strict_json import dumps

Decode = Callable[[Sequence[int]], str]

_WIDTH = 100  # of the text form, in characters


def render_text(trajectory: Trajectory) -> str:
    """The episode step by step."""
    head = [
        f"episode  {trajectory.id}  {trajectory.created[:19]}",
        f"policy   {trajectory.policy}  seed {trajectory.seed}",
        f"question {trajectory.task.question}",
    ]
    turns = [_turn_text(number, turn) for number, turn in enumerate(trajectory.turns, 1)]
    marks = "".join(f"[{number}]" for number in trajectory.citations)
    tail = [
        f"status   {trajectory.status.value} ({trajectory.stop_reason.value}), "
        f"{trajectory.seconds:.1f} s, {int(trajectory.sampled.sum())} sampled tokens",
        f"answer   {trajectory.answer} {marks}".rstrip(),
        *([f"error    {trajectory.error}"] if trajectory.error else []),
        *(
            f"  [{source.number}] {source.title}: {source.id}"
            for source in trajectory.sources
            if source.number in trajectory.citations
        ),
    ]
    return printable("\n".join([*head, "", *turns, "", *tail]))


def _turn_text(number: int, turn: Turn) -> str:
    action = turn.action
    what = f"{action.name or action.kind.value}: {action.text or _arguments(turn)}"
    lines = [f"{number:>2}. {what}  ({turn.policy_seconds:.2f} s)"]
    if turn.forced:
        lines.append("    forced: a budget was spent")
    if action.thought:
        lines.append(textwrap.indent(textwrap.fill(action.thought, _WIDTH - 6), "    | "))
    seen = turn.observation
    if seen is not None:
        for source in seen.sources:
            line = f"[{source.number}] {source.title}: {' '.join(source.text.split())}"
            lines.append(
                textwrap.indent(textwrap.shorten(line, _WIDTH - 6, placeholder=" …"), "      ")
            )
        if seen.misled:
            lines.append("      (made to go wrong: gold passages were withheld)")
        text = f"error: {seen.error}" if seen.error else ("" if seen.sources else seen.text)
        if text:
            lines.append(f"      {text}")
    return "\n".join(lines)


def _arguments(turn: Turn) -> str:
    return ", ".join(str(value) for value in turn.action.arguments.values())


def render_html(
    trajectories: Sequence[Trajectory],
    decode: Decode | None = None,
    receipts: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """One HTML page.

    Args:
        trajectories: shown in this order.
        decode: token ids to text; with it, each turn's tokens are shown with their probability.
        receipts: by trajectory id, a receipt of credit as JSON values (see docs/credit.md); shown
            beside the turns, with the information gain drawn. None for trajectories without one.
    """
    made = receipts or {}
    views = [{**_view(t, decode), "credit": made.get(t.id)} for t in trajectories]
    data = dumps(views)
    page = _asset("trace.html")
    for mark, text in (
        ("/*STYLE*/", _asset("trace.css")),
        ("/*SCRIPT*/", _asset("trace.js")),
        ("/*DATA*/", data.replace("<", "\\u003c")),
    ):
        page = page.replace(mark, text, 1)
    return page


def _view(trajectory: Trajectory, decode: Decode | None) -> dict[str, Any]:
    record = trajectory.to_dict()
    ids, logprobs = record.pop("token_ids"), record.pop("logprobs")
    record["confidence"] = trajectory.confidence
    for turn in record["turns"]:
        start, stop = turn["reply"]
        if decode is not None:
            turn["tokens"] = [
                [decode([token]), logprob]
                for token, logprob in zip(ids[start:stop], logprobs[start:stop], strict=True)
            ]
    return record


def _asset(name: str) -> str:
    return resources.files("agent.templates").joinpath(name).read_text("utf-8")
