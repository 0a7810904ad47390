"""What else a turn might have been: another observation of the same call, or another call.

Each gives the episode at the end of a turn that did not happen, to go on from beside the one that
did (`agent.replay.rebuild`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from agent.episode import Episode
from agent.graph import Setup, build_graph
from agent.policies.base import Completion, Policy, Request
from agent.replay import Change, ReplayError, check_turn, rebuild
from agent.trajectory import ActionKind, Status, Trajectory, Turn
from kg.errors import ToolUnavailableError
from tools.base import Observation

EMPTY = "No result."
_STEPS = 100  # of the state machine in one turn; it takes three


def without_observation(seen: Observation) -> Observation:
    """The same call with nothing found: an empty result note. A verdict stays one."""
    return replace(seen, text=EMPTY, sources=(), error=None, truncated=False, data={})


def with_text(text: str) -> Change:
    """The same call with another result, which is foreign text: what could act in it is broken."""
    return lambda seen: replace(without_observation(seen), text=text)


async def with_call(done: Trajectory, turn: int, setup: Setup, body: str) -> Episode:
    """The episode at the end of a turn that called the same tool with something else.

    The state machine itself runs the turn, with a reply that nobody sampled: the thought of the
    recorded one, and the call.

    Args:
        done: the finished episode.
        turn: from 1; a tool call.
        setup: as for `rebuild`; its tool is asked.
        body: what stands between the tool's tags, such as a query or a verdict.

    Raises:
        ReplayError: as `rebuild`, or the turn is no tool call, or `body` cannot be part of one, or
            these budgets do not reach to the turn.
        ToolUnavailableError: the tool cannot work.
    """
    check_turn(done, turn)
    recorded = done.turns[turn - 1]
    if recorded.action.kind is not ActionKind.TOOL:
        raise ReplayError(f"turn {turn} of the episode {done.id[:8]} is not a tool call")
    episode = rebuild(done, turn - 1, setup)
    reply = _reply(recorded, setup, body)
    arguments = {setup.tools[recorded.action.name].body: body}
    action = setup.format.parse(reply)
    if (action.name, action.arguments) != (recorded.action.name, arguments):
        raise ReplayError(f"'{body}' cannot stand in a call of {recorded.action.name}")
    given = replace(setup, policy=_Given(setup.policy, reply))
    stream = build_graph(setup.tools).astream(
        {"episode": episode}, {"recursion_limit": _STEPS}, context=given, stream_mode="values"
    )
    async for state in stream:
        episode = state["episode"]
        if len(episode.turns) >= turn or episode.status is not None:
            break
    if episode.status is Status.FAILED:
        raise ToolUnavailableError(episode.error)
    if episode.status is not None or episode.turns[-1].forced:
        raise ReplayError(
            f"the budgets are spent before turn {turn}", "agent config show; AGENT_BUDGETS__TURNS"
        )
    return episode


class _Given(Policy):
    """A policy whose reply is given."""

    def __init__(self, policy: Policy, reply: Completion) -> None:
        self.name, self.version = policy.name, policy.version
        self.config_version = policy.config_version
        self.template = policy.template
        self.context_length = policy.context_length
        self.native_tools = policy.native_tools
        self.engine = policy.engine
        self.reply = reply

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The reply, whatever is asked."""
        return [self.reply for _ in requests]


def _reply(turn: Turn, setup: Setup, body: str) -> Completion:
    """A call of the same tool as a turn's, as the format writes it, behind the turn's thought."""
    name = turn.action.name
    arguments = {setup.tools[name].body: body}
    if setup.format.name == "tags":
        thought = turn.text.partition(f"<{name}>")[0]
        text = f"{thought}<{name}>{body}</{name}>"
    else:
        thought = turn.text.partition("<tool_call>")[0]
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        text = f"{thought}<tool_call>\n{call}\n</tool_call>"
    template = setup.policy.template
    if template is not None:
        return Completion(text, token_ids=tuple(template.encode(text)), sampled=False)
    if setup.format.name == "tags":
        return Completion(text, sampled=False)
    native = {"id": "call_given", "name": name, "arguments": json.dumps(arguments)}
    return Completion(thought, tool_calls=(native,), sampled=False)
