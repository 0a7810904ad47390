"""The record of an episode, down to tokens.

A `Trajectory` is append-only and token-exact: `token_ids` holds every prompt, sampled and
observation token once, in the order they came to be. What a turn's policy call saw is
`Turn.context`, a list of spans into that array; it is usually everything before the turn, and skips
an observation that the judge rejected. The on-disk form is described in docs/trajectory.md.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.policies.base import Sampling
from agent.record import check_id, check_types, logprob_array, token_array, utc
from agent.task import Task
from kg.errors import UsageError
from tools.base import MISLED, Observation, Source, Verdict, freeze

FORMAT_VERSION = 1


class TrajectoryError(UsageError):
    """A stored trajectory is not what the format says."""


class Status(StrEnum):
    """How an episode ended."""

    ANSWERED = "answered"
    ABSTAINED = "abstained"
    TRUNCATED = "truncated"
    OVER_BUDGET = "over_budget"
    FAILED = "failed"


class StopReason(StrEnum):
    """What ended an episode, finer than `Status`."""

    ANSWER = "answer"
    ABSTAIN = "abstain"
    MAX_TURNS = "max_turns"
    MAX_TOOL_CALLS = "max_tool_calls"
    MAX_TOKENS = "max_tokens"
    MAX_SECONDS = "max_seconds"
    CONTEXT_LENGTH = "context_length"
    REPETITION = "repetition"
    MALFORMED = "malformed_actions"
    CANCELLED = "cancelled"
    POLICY_ERROR = "policy_error"
    TOOL_UNAVAILABLE = "tool_unavailable"

    @property
    def is_budget(self) -> bool:
        """Whether a budget was spent, so that the answer is only the best so far."""
        return self in {
            StopReason.MAX_TURNS,
            StopReason.MAX_TOOL_CALLS,
            StopReason.MAX_TOKENS,
            StopReason.MAX_SECONDS,
            StopReason.CONTEXT_LENGTH,
            StopReason.REPETITION,
        }


class Span(NamedTuple):
    """Half-open range of positions in `token_ids`."""

    start: int
    stop: int


class ActionKind(StrEnum):
    """What the policy asked for."""

    TOOL = "tool"
    ANSWER = "answer"
    ABSTAIN = "abstain"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Action:
    """A parsed policy output.

    Attributes:
        kind: what to do.
        name: the tool, for `TOOL`.
        arguments: raw arguments of the tool, not yet validated.
        text: the answer, the reason to abstain, or what is wrong with a malformed output.
        thought: reasoning written before the action.
        citations: numbers of the sources that the answer cites.
    """

    kind: ActionKind
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    thought: str = ""
    citations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        freeze(self, "citations")


@dataclass(frozen=True, slots=True)
class Turn:
    """One policy call and what came of it.

    Attributes:
        context: spans of `token_ids` that the policy saw, in order.
        reply: span of the tokens it produced.
        observation_span: span of the tokens that the observation became, next prompt included.
        text: the reply, decoded.
        action: the parsed reply.
        observation: what the tool or the runtime answered; None after the last turn.
        sampled: False when the reply was written by a script and carries no loss.
        forced: whether the runtime opened a final answer because a budget was spent.
        finish: the policy's finish reason.
        reasoning: hidden reasoning that a server returned.
        prompt_tokens, reply_tokens: as the engine or the server counted them, hidden reasoning
            included; 0 where it did not.
        policy_seconds, tool_seconds: wall time of the two halves.
        started: seconds since the episode began.
    """

    context: tuple[Span, ...]
    reply: Span
    observation_span: Span
    text: str
    action: Action
    observation: Observation | None = None
    sampled: bool = True
    forced: bool = False
    finish: str = "stop"
    reasoning: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    policy_seconds: float = 0.0
    tool_seconds: float = 0.0
    started: float = 0.0

    def __post_init__(self) -> None:
        freeze(self, "context")


_NO_TOOLS = ("format", "rule", MISLED)  # what else `Trajectory.versions` holds


@dataclass(frozen=True)
class Trajectory:
    """A finished episode.

    Attributes:
        id: unique; the store refuses nothing and keeps the first of two equal ids.
        task, seed, sampling, policy, versions: enough to replay it. `policy` is `name@version`;
            `versions` holds the tools' data versions, the format and the context rule, and under
            `misled` the tool whose first call was to go wrong, if that was so.
        token_ids: int32[n].
        logprobs: float32[n], nats; NaN where the token was not sampled or is not known.
        turns: in order.
        answer: final text without citation marks; empty when there is none.
        sources: every source shown, by citation number.
        history: earlier questions and answers of the same conversation.
        group: rollouts of one task that are compared share it.
        rewards: named scalar rewards, added later.
        error: one line when the episode failed.
    """

    task: Task
    policy: str
    seed: int
    sampling: Sampling
    status: Status
    stop_reason: StopReason
    turns: tuple[Turn, ...]
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    answer: str = ""
    citations: tuple[int, ...] = ()
    sources: tuple[Source, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    group: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    created: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds")
    )
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        try:
            check_id(self.id)
            utc(self.created)
        except (AttributeError, TypeError, ValueError) as error:
            raise TrajectoryError(f"trajectory: {error}") from error
        if self.token_ids.shape != self.logprobs.shape or self.token_ids.ndim != 1:
            shapes = f"{self.token_ids.shape} token ids but {self.logprobs.shape} logprobs"
            raise TrajectoryError(f"trajectory {self.id}: {shapes}")
        size = len(self.token_ids)
        spans = [
            s for turn in self.turns for s in (*turn.context, turn.reply, turn.observation_span)
        ]
        for span in spans:
            if not 0 <= span.start <= span.stop <= size:
                raise TrajectoryError(
                    f"trajectory {self.id}: span {tuple(span)} lies outside 0..{size}"
                )

    @cached_property
    def sampled(self) -> npt.NDArray[np.bool_]:
        """bool[n]: true where the policy itself sampled the token, the loss mask."""
        mask = np.zeros(len(self.token_ids), dtype=np.bool_)
        for turn in self.turns:
            if turn.sampled:
                mask[turn.reply.start : turn.reply.stop] = True
        return mask

    @property
    def has_tokens(self) -> bool:
        """Whether the policy gave token ids (a hosted API may not)."""
        return len(self.token_ids) > 0

    @property
    def abstained(self) -> bool:
        """Whether the policy declined by its own act, with or without budget left.

        An empty answer for another reason (a budget spent on malformed replies, an error) is none.
        """
        if self.status is Status.FAILED or self.answer:
            return False
        last = self.turns[-1].action.kind if self.turns else None
        return self.status is Status.ABSTAINED or last is ActionKind.ABSTAIN

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools that the policy could call, in their order; empty where nobody wrote them
        down."""
        return tuple(name for name in self.versions if name not in _NO_TOOLS)

    @property
    def misled(self) -> bool:
        """Whether a tool was made to withhold what it found, and the policy saw the result."""
        return any(turn.observation is not None and turn.observation.misled for turn in self.turns)

    @property
    def fault(self) -> bool:
        """Whether a tool call was failed by the machine; see `Observation.fault`."""
        return any(turn.observation is not None and turn.observation.fault for turn in self.turns)

    @property
    def confidence(self) -> float | None:
        """Geometric-mean probability of the final reply's tokens; None when unknown."""
        if not self.turns:
            return None
        values = self.logprobs[slice(*self.turns[-1].reply)]
        known = values[~np.isnan(values)]
        return math.exp(min(0.0, float(known.mean()))) if len(known) else None

    def prompt_of(self, turn: Turn) -> npt.NDArray[np.int32]:
        """int32[m]: the exact prompt that a turn's policy call saw."""
        return gather(self.token_ids, turn.context)

    def to_dict(self) -> dict[str, Any]:
        """The on-disk form: plain JSON values, format version inside. NaN becomes null."""
        return {
            "format": FORMAT_VERSION,
            "id": self.id,
            "created": self.created,
            "task": self.task.to_dict(),
            "group": self.group,
            "policy": self.policy,
            "seed": self.seed,
            "sampling": asdict(self.sampling),
            "status": self.status.value,
            "stop_reason": self.stop_reason.value,
            "answer": self.answer,
            "citations": list(self.citations),
            "sources": [asdict(source) for source in self.sources],
            "history": [list(pair) for pair in self.history],
            "versions": self.versions,
            "rewards": self.rewards,
            "error": self.error,
            "seconds": self.seconds,
            "turns": [turn_to_dict(turn) for turn in self.turns],
            "token_ids": self.token_ids.tolist(),
            "logprobs": [None if math.isnan(x) else x for x in self.logprobs.tolist()],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trajectory:
        """The inverse of `to_dict`.

        Raises:
            TrajectoryError: another format version, a missing field or a value out of place.
        """
        if data.get("format") != FORMAT_VERSION:
            raise TrajectoryError(
                f"trajectory format {data.get('format')!r}; this version reads {FORMAT_VERSION}"
            )
        try:
            made = cls(
                task=Task.from_dict(data["task"]),
                sampling=Sampling(**data["sampling"]),
                status=Status(data["status"]),
                stop_reason=StopReason(data["stop_reason"]),
                turns=tuple(turn_from_dict(turn) for turn in data["turns"]),
                token_ids=token_array(data["token_ids"]),
                logprobs=logprob_array(data["logprobs"]),
                citations=tuple(data["citations"]),
                sources=tuple(Source(**source) for source in data["sources"]),
                history=tuple((question, answer) for question, answer in data["history"]),
                **{key: data[key] for key in _PLAIN},
            )
            check_types(made, cls)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            cause = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise TrajectoryError(f"trajectory {data.get('id', '?')}: {cause}") from error
        return made

    def with_rewards(self, rewards: dict[str, float]) -> Trajectory:
        """A copy with more named rewards."""
        return replace(self, rewards={**self.rewards, **rewards})


_PLAIN = (
    "id",
    "created",
    "group",
    "policy",
    "seed",
    "answer",
    "versions",
    "rewards",
    "error",
    "seconds",
)


def gather(
    values: Sequence[int] | npt.NDArray[np.int32], spans: Iterable[Span]
) -> npt.NDArray[np.int32]:
    """int32[m]: the values under `spans`, in their order."""
    parts = [np.asarray(values[span.start : span.stop], dtype=np.int32) for span in spans]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def join(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same positions with adjacent spans merged and empty ones dropped."""
    merged: list[Span] = []
    for span in spans:
        if span.start == span.stop:
            continue
        if merged and merged[-1].stop == span.start:
            merged[-1] = Span(merged[-1].start, span.stop)
        else:
            merged.append(span)
    return tuple(merged)


def turn_to_dict(turn: Turn) -> dict[str, Any]:
    """Plain JSON values of a turn."""
    data = asdict(turn)
    data["context"] = [list(span) for span in turn.context]
    data["reply"], data["observation_span"] = list(turn.reply), list(turn.observation_span)
    data["action"]["citations"] = list(turn.action.citations)
    if turn.observation is not None:
        data["observation"]["sources"] = [asdict(source) for source in turn.observation.sources]
    return data


def turn_from_dict(data: dict[str, Any]) -> Turn:
    """The inverse of `turn_to_dict`."""
    action = data["action"]
    return Turn(
        **{
            **data,
            "context": tuple(Span(*span) for span in data["context"]),
            "reply": Span(*data["reply"]),
            "observation_span": Span(*data["observation_span"]),
            "action": Action(**{**action, "kind": ActionKind(action["kind"])}),
            "observation": _observation(data["observation"]),
        }
    )


def _observation(data: dict[str, Any] | None) -> Observation | None:
    if data is None:
        return None
    verdict = data["verdict"]
    sources = tuple(Source(**source) for source in data["sources"])
    return Observation(
        **{**data, "sources": sources, "verdict": Verdict(verdict) if verdict else None}
    )
