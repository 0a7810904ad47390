"""What an episode cost and how it went, counted from its trajectory. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from agent.trajectory import ActionKind, Trajectory
from tools.base import Verdict

_JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and seconds of one episode.

    Attributes:
        turns: policy calls.
        searches: calls of the search tool that were carried out; one that the runtime refused, because
            a budget was spent or it was repeated too often, was not.
        tool_calls: calls of tools that were carried out, the judge excepted.
        invalid: malformed actions, and calls that ended in an error.
        repeated: calls that were asked for before with the same arguments, refused ones included.
        rejected: observations that the policy judged useless.
        prompt_tokens: read over all turns; a context that is read again counts again.
        sampled_tokens: written by the policy.
        seconds: wall time; `policy_seconds` of it in the policy.
    """

    turns: int
    searches: int
    tool_calls: int
    invalid: int
    repeated: int
    rejected: int
    prompt_tokens: int
    sampled_tokens: int
    seconds: float
    policy_seconds: float


def usage(trajectory: Trajectory) -> Usage:
    """Count one episode."""
    turns = trajectory.turns
    asked = [
        turn for turn in turns if turn.action.kind is ActionKind.TOOL and turn.action.name != _JUDGE
    ]
    ran = [turn.action.name for turn in asked if turn.observation and turn.observation.tool]
    calls = [(t.action.name, json.dumps(t.action.arguments, sort_keys=True)) for t in asked]
    seen = [turn.observation for turn in turns if turn.observation is not None]
    return Usage(
        turns=len(turns),
        searches=ran.count("search"),
        tool_calls=len(ran),
        invalid=sum(turn.action.kind is ActionKind.MALFORMED for turn in turns)
        + sum(observation.error is not None for observation in seen if observation.tool),
        repeated=len(calls) - len(set(calls)),
        rejected=sum(observation.verdict is Verdict.UNHELPFUL for observation in seen),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        sampled_tokens=sum(turn.reply_tokens for turn in turns if turn.sampled),
        seconds=trajectory.seconds,
        policy_seconds=sum(turn.policy_seconds for turn in turns),
    )


def total(of: Sequence[Usage]) -> Usage:
    """What several episodes cost together."""
    return Usage(**{f.name: sum(getattr(one, f.name) for one in of) for f in fields(Usage)})
