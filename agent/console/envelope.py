"""The JSON envelope of an answer: the same keys for every outcome, failures included.

docs/cli.md describes it; add keys, never rename or drop one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agent.trajectory import Status, StopReason, Trajectory, Turn
from kg.errors import TurnwiseError

INTERRUPTED = 130


def envelope(trajectory: Trajectory, thread: str, digest: str) -> dict[str, Any]:
    """The envelope of an episode; `thread` is empty when its conversation is not kept."""
    shown = [s for s in trajectory.sources if s.number in trajectory.citations]
    return {
        **_empty(digest),
        "id": trajectory.id,
        "thread_id": thread or None,
        "status": trajectory.status.value,
        "answer": trajectory.answer or None,
        "abstained": trajectory.status is Status.ABSTAINED,
        "confidence": trajectory.confidence,
        "citations": [
            {"number": s.number, "id": s.id, "title": s.title, "text": s.text, "origin": s.origin}
            for s in shown
        ],
        "steps": [_step(turn) for turn in trajectory.turns],
        "usage": usage(trajectory),
        "timing": {
            "seconds": round(trajectory.seconds, 3),
            "policy_seconds": round(sum(t.policy_seconds for t in trajectory.turns), 3),
            "tool_seconds": round(sum(t.tool_seconds for t in trajectory.turns), 3),
        },
        "termination": trajectory.stop_reason.value,
        "error": _error(trajectory),
    }


def failure(error: TurnwiseError) -> dict[str, Any]:
    """The envelope of a failure before or outside an episode."""
    cause = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return {**_empty(""), "status": "failed", "termination": "error", "error": cause}


def exit_code(trajectory: Trajectory, fail_on_abstain: bool = False) -> int:
    """The documented exit code of an episode."""
    if trajectory.status is Status.ANSWERED:
        return 0
    if trajectory.status is Status.ABSTAINED:
        return 3 if fail_on_abstain else 0
    if trajectory.status in (Status.OVER_BUDGET, Status.TRUNCATED):
        return 4
    by_reason = {
        StopReason.POLICY_ERROR: 5,
        StopReason.TOOL_UNAVAILABLE: 6,
        StopReason.CANCELLED: INTERRUPTED,
    }
    return by_reason.get(trajectory.stop_reason, 1)


def usage(trajectory: Trajectory) -> dict[str, int]:
    """Counts of turns, tool calls and tokens."""
    return {
        "turns": len(trajectory.turns),
        "tool_calls": sum(
            1
            for t in trajectory.turns
            if t.observation and t.observation.tool and t.observation.verdict is None
        ),
        "prompt_tokens": sum(turn.prompt_tokens for turn in trajectory.turns),
        "sampled_tokens": sum(turn.reply_tokens for turn in trajectory.turns if turn.sampled),
    }


def package_version() -> str:
    """The installed version of turnwise."""
    try:
        return version("turnwise")
    except PackageNotFoundError:
        return "0+unknown"


def _empty(digest: str) -> dict[str, Any]:
    return {
        "id": None,
        "thread_id": None,
        "status": None,
        "answer": None,
        "abstained": False,
        "confidence": None,
        "citations": [],
        "steps": [],
        "usage": {},
        "timing": {},
        "termination": None,
        "error": None,
        "config_digest": digest,
        "version": package_version(),
    }


def _error(trajectory: Trajectory) -> dict[str, str] | None:
    if trajectory.status is not Status.FAILED:
        return None
    return {"type": trajectory.stop_reason.value, "message": trajectory.error, "hint": ""}


def _step(turn: Turn) -> dict[str, Any]:
    seen = turn.observation
    return {
        "action": turn.action.name or turn.action.kind.value,
        "arguments": turn.action.arguments,
        "text": turn.action.text,
        "thought": turn.action.thought,
        "forced": turn.forced,
        "observation": None
        if seen is None
        else {
            "text": seen.text,
            "error": seen.error,
            "verdict": seen.verdict.value if seen.verdict else None,
            "sources": [s.number for s in seen.sources],
        },
        "policy_seconds": round(turn.policy_seconds, 3),
        "tool_seconds": round(turn.tool_seconds, 3),
    }
