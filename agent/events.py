"""What an episode says while it runs: typed events, streamed through LangGraph's custom channel.

The wire form (`to_dict`) is ours, so that a change in LangGraph cannot change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.trajectory import Action, Status, StopReason
from tools.base import Observation


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A piece of the policy's text."""

    turn: int
    text: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"type": "token", "turn": self.turn, "text": self.text}


@dataclass(frozen=True, slots=True)
class ActionEvent:
    """A parsed action, before it is carried out."""

    turn: int
    action: Action

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        action = self.action
        return {
            "type": "action",
            "turn": self.turn,
            "kind": action.kind.value,
            "tool": action.name,
            "arguments": action.arguments,
            "text": action.text,
            "thought": action.thought,
        }


@dataclass(frozen=True, slots=True)
class ObservationEvent:
    """What a tool or the runtime answered."""

    turn: int
    observation: Observation

    def to_dict(self) -> dict[str, Any]:
        """JSON form; sources by number, id and title."""
        seen = self.observation
        return {
            "type": "observation",
            "turn": self.turn,
            "tool": seen.tool,
            "text": seen.text,
            "error": seen.error,
            "verdict": seen.verdict.value if seen.verdict else None,
            "seconds": round(seen.seconds, 4),
            "sources": [{"number": s.number, "id": s.id, "title": s.title} for s in seen.sources],
        }


@dataclass(frozen=True, slots=True)
class AnswerEvent:
    """The end of the episode."""

    answer: str
    status: Status
    stop_reason: StopReason
    citations: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "type": "answer",
            "answer": self.answer,
            "status": self.status.value,
            "stop_reason": self.stop_reason.value,
            "citations": list(self.citations),
        }


Event: TypeAlias = TokenEvent | ActionEvent | ObservationEvent | AnswerEvent
