"""What an episode cost and how it went, counted from its trajectory. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.trajectory import ActionKind, Trajectory
from tools.base import Verdict

_JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and seconds of one episode.

    Attributes:
        turns: policy calls.
        searches: calls of the search tool.
        tool_calls: calls of tools, the judge excepted.
        invalid: malformed actions, and calls that ended in an error.
        repeated: calls that were made before with the same arguments.
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
    calls = [
        (turn.action.name, json.dumps(turn.action.arguments, sort_keys=True))
        for turn in turns
        if turn.action.kind is ActionKind.TOOL and turn.action.name != _JUDGE
    ]
    seen = [turn.observation for turn in turns if turn.observation is not None]
    return Usage(
        turns=len(turns),
        searches=sum(name == "search" for name, _ in calls),
        tool_calls=len(calls),
        invalid=sum(turn.action.kind is ActionKind.MALFORMED for turn in turns)
        + sum(observation.error is not None for observation in seen if observation.tool),
        repeated=len(calls) - len(set(calls)),
        rejected=sum(observation.verdict is Verdict.UNHELPFUL for observation in seen),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        sampled_tokens=sum(turn.reply_tokens for turn in turns if turn.sampled),
        seconds=trajectory.seconds,
        policy_seconds=sum(turn.policy_seconds for turn in turns),
    )
