"""Trajectories built by hand: each turn is what one policy call did and what came of it."""

import numpy as np

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn
from tools.base import Observation, Source, Verdict

NOWHERE = Span(0, 0)


def task(question="Who directed Alien?", answers=("Ridley Scott",), **fields):
    return Task(id=fields.pop("id", "q1"), question=question, answers=answers, **fields)


def turn(action, observation=None, text="", **fields):
    return Turn((), NOWHERE, NOWHERE, text or action.text, action, observation, **fields)


def call(name="search", thought="", seen=None, seconds=0.0, **arguments):
    action = Action(ActionKind.TOOL, name, arguments, thought=thought)
    return turn(action, seen or Observation(name, text="nothing"), tool_seconds=seconds)


def search(query="alien director", *texts, ids=(), thought="", error=None):
    ids = ids or [f"{query}/{i}" for i in range(len(texts))]
    sources = tuple(
        Source(id=id, title="", text=text, number=i + 1)
        for i, (id, text) in enumerate(zip(ids, texts, strict=True))
    )
    seen = Observation("search", text="" if texts else "no results", sources=sources, error=error)
    return call("search", thought, seen, query=query)


def judge(verdict):
    seen = Observation("judge", "noted", verdict=Verdict("yes" if verdict else "no"))
    return call("judge", "", seen, verdict=str(seen.verdict))


def answer(text="Ridley Scott", thought="", citations=(), whole=None, **fields):
    action = Action(ActionKind.ANSWER, text=text, thought=thought, citations=tuple(citations))
    return turn(action, None, whole or f"<answer>{text}</answer>", **fields)


def abstain(reason="not found", text=None):
    return turn(
        Action(ActionKind.ABSTAIN, text=reason), None, text or f"<abstain>{reason}</abstain>"
    )


def malformed(complaint="no action tag"):
    seen = Observation("", error=complaint)
    return turn(Action(ActionKind.MALFORMED, text=complaint), seen, "gibberish")


def confident(trajectory, confidence):
    """The same trajectory with tokens whose geometric-mean probability is `confidence`."""
    from dataclasses import replace

    last = replace(trajectory.turns[-1], reply=Span(0, 2))
    return replace(
        trajectory,
        turns=(*trajectory.turns[:-1], last),
        token_ids=np.array([1, 2], np.int32),
        logprobs=np.full(2, np.log(confidence), np.float32),
    )


_ENDS = {
    ActionKind.ANSWER: (Status.ANSWERED, StopReason.ANSWER),
    ActionKind.ABSTAIN: (Status.ABSTAINED, StopReason.ABSTAIN),
}


def episode(*turns, of=None, id="", **fields):
    """A trajectory without tokens; status and answer follow from the last turn."""
    last = turns[-1].action if turns else None
    cut = (Status.OVER_BUDGET, StopReason.MAX_TURNS)
    status, reason = _ENDS.get(last.kind, cut) if last else (Status.FAILED, StopReason.POLICY_ERROR)
    defaults = {
        "task": of or task(),
        "policy": "hand@0",
        "seed": 0,
        "sampling": Sampling(),
        "status": status,
        "stop_reason": reason,
        "turns": turns,
        "token_ids": np.zeros(0, np.int32),
        "logprobs": np.zeros(0, np.float32),
        "answer": last.text if last and last.kind is ActionKind.ANSWER else "",
        "citations": last.citations if last else (),
        "sources": tuple(s for t in turns if t.observation for s in t.observation.sources),
    }
    named = {"id": id} if id else {}
    return Trajectory(**{**defaults, **named, **fields})
