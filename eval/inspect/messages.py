"""A trajectory as the chat messages that Inspect shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.trajectory import ActionKind, Trajectory, Turn

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage, ModelUsage

    from tools.base import Observation


def messages_of(trajectory: Trajectory) -> list[ChatMessage]:
    """Question, replies, tool calls and their results, in order; replies stay as they were."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser

    messages: list[ChatMessage] = []
    for question, answer in trajectory.history:
        messages += [ChatMessageUser(content=question), ChatMessageAssistant(content=answer)]
    messages.append(ChatMessageUser(content=trajectory.task.question))
    for number, turn in enumerate(trajectory.turns, 1):
        messages += _turn(f"turn{number}", turn, trajectory.policy)
    return messages


def usage_of(trajectory: Trajectory) -> ModelUsage:
    """Tokens of all policy calls; a prompt counts each time that it was read."""
    from inspect_ai.model import ModelUsage

    read = sum(span.stop - span.start for turn in trajectory.turns for span in turn.context)
    sampled = int(trajectory.sampled.sum())
    return ModelUsage(input_tokens=read, output_tokens=sampled, total_tokens=read + sampled)


def _turn(id: str, turn: Turn, policy: str) -> list[ChatMessage]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser
    from inspect_ai.tool import ToolCall, ToolCallError

    called = turn.action.kind is ActionKind.TOOL
    call = ToolCall(id=id, function=turn.action.name, arguments=dict(turn.action.arguments))
    said = ChatMessageAssistant(
        content=turn.text, model=policy, source="generate", tool_calls=[call] if called else None
    )
    if turn.observation is None:
        return [said]
    shown = _shown(turn.observation)
    if not called:
        return [said, ChatMessageUser(content=shown)]
    problem = turn.observation.error
    return [
        said,
        ChatMessageTool(
            content=shown,
            tool_call_id=id,
            function=turn.action.name,
            error=ToolCallError("unknown", problem) if problem else None,
        ),
    ]


def _shown(observation: Observation) -> str:
    if observation.error:
        return observation.error
    lines = [f"[{one.number}] {one.title}: {one.text}" for one in observation.sources]
    return "\n".join(lines) or observation.text
