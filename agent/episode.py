"""An episode while it runs: what the state machine carries from node to node.

`Episode` is immutable; every function here returns a changed copy. It keeps two views of the same
conversation, token ids for policies that are token-exact and chat messages for those that are not,
so that a node need not know which one the policy reads.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Span, Status, StopReason, Trajectory, Turn, join
from tools.base import Source, Verdict, freeze


class ContextRule(StrEnum):
    """What becomes of an observation that the judge rejected (ReSeek v1 and v3)."""

    OMIT = "omit"
    SOFT = "soft"


class Budgets(BaseModel):
    """What one episode may spend. Each has its own stop reason; see `StopReason`.

    Attributes:
        turns: policy calls before the forced answer.
        tool_calls: calls of tools that count (the judge does not).
        tokens: sampled tokens.
        seconds: wall time.
        repairs: malformed actions that are answered with an explanation.
        repeats: times that one call may be made again with the same arguments.
    """

    model_config = ConfigDict(extra="forbid")

    turns: int = Field(10, ge=1)
    tool_calls: int = Field(6, ge=0)
    tokens: int = Field(2048, ge=1)
    seconds: float = Field(300.0, gt=0)
    repairs: int = Field(2, ge=0)
    repeats: int = Field(1, ge=0)


@dataclass(frozen=True)
class Episode:
    """The state of a running episode.

    Attributes:
        token_ids, logprobs: as in `Trajectory`, NaN where not sampled.
        context: spans that the next policy call sees.
        messages: the same conversation as chat messages.
        turns: finished turns.
        pending: the turn whose action is being carried out.
        sources: all sources shown so far; a source's number is its index plus one.
        misled: whether its first search is made to go wrong; see `agent.misleading`.
        judged: span and message index of the last tool result, what a verdict is about.
        rejected: whether the last verdict was no and no tool has run since.
        opening: text that the runtime wrote to open a forced answer, else "".
        spent: the budget that ended free play, when one did.
        elapsed: seconds of wall time, resumptions included.
    """

    task: Task
    seed: int = 0
    group: str = ""
    history: tuple[tuple[str, str], ...] = ()
    misled: bool = False
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    context: tuple[Span, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    turns: tuple[Turn, ...] = ()
    pending: Turn | None = None
    sources: tuple[Source, ...] = ()
    judged: tuple[Span, int] | None = None
    rejected: bool = False
    opening: str = ""
    spent: StopReason | None = None
    repairs: int = 0
    tool_calls: int = 0
    elapsed: float = 0.0
    status: Status | None = None
    stop_reason: StopReason | None = None
    answer: str = ""
    citations: tuple[int, ...] = ()
    error: str = ""
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(
            self, "token_ids", "logprobs", "context", "messages", "turns", "sources", "citations"
        )
        object.__setattr__(self, "history", tuple((q, a) for q, a in self.history))

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy produced so far; where nobody counted, four characters are one."""
        return sum(turn.reply_tokens or len(turn.text) // 4 for turn in self.turns)

    def write(
        self, ids: Sequence[int], logprobs: Sequence[float] | None = None
    ) -> tuple[Episode, Span]:
        """Append tokens without showing them yet; gives the episode and their span."""
        start = len(self.token_ids)
        values = tuple(logprobs) if logprobs else (math.nan,) * len(ids)
        grown = replace(self, token_ids=(*self.token_ids, *ids), logprobs=(*self.logprobs, *values))
        return grown, Span(start, start + len(ids))

    def show(
        self, ids: Sequence[int], message: dict[str, Any] | None = None
    ) -> tuple[Episode, Span]:
        """Append unsampled tokens to what the policy sees, with the message they stand for."""
        grown, span = self.write(ids)
        messages = (*self.messages, message) if message else self.messages
        return replace(grown, context=join((*grown.context, span)), messages=messages), span

    def hide(self, span: Span, at: int, ids: Sequence[int], message: dict[str, Any]) -> Episode:
        """Replace what the policy sees under `span` (message `at`) by other tokens."""
        grown, stub = self.write(ids)
        context: list[Span] = []
        for part in self.context:
            if part.start <= span.start and span.stop <= part.stop:
                context += [Span(part.start, span.start), stub, Span(span.stop, part.stop)]
            else:
                context.append(part)
        messages = (*self.messages[:at], message, *self.messages[at + 1 :])
        return replace(grown, context=join(context), messages=messages)

    def cite(self, sources: Sequence[Source]) -> tuple[Episode, tuple[Source, ...]]:
        """Give sources their citation numbers; a source seen before keeps its number."""
        known = {source.id: source for source in self.sources}
        for source in sources:
            known.setdefault(source.id, replace(source, number=len(known) + 1))
        numbered = tuple(replace(source, number=known[source.id].number) for source in sources)
        return replace(self, sources=tuple(known.values())), numbered

    def judge(self, verdict: Verdict) -> Episode:
        """Remember a verdict on the last tool result."""
        return replace(self, rejected=verdict is Verdict.UNHELPFUL)

    def over(self, budgets: Budgets) -> StopReason | None:
        """The first budget that is spent, if any."""
        checks = (
            (len(self.turns) >= budgets.turns, StopReason.MAX_TURNS),
            (self.sampled_tokens >= budgets.tokens, StopReason.MAX_TOKENS),
            (self.elapsed >= budgets.seconds, StopReason.MAX_SECONDS),
            (self.repairs > budgets.repairs, StopReason.MALFORMED),
        )
        return next((reason for spent, reason in checks if spent), None)

    def end(self, status: Status, reason: StopReason, **changes: Any) -> Episode:
        """The finished episode."""
        return replace(self, status=status, stop_reason=reason, pending=None, **changes)

    def to_trajectory(
        self, policy: str, sampling: Sampling, versions: dict[str, str], created: str
    ) -> Trajectory:
        """The record of a finished episode."""
        assert self.status is not None
        assert self.stop_reason is not None
        return Trajectory(
            task=self.task,
            policy=policy,
            seed=self.seed,
            sampling=sampling,
            status=self.status,
            stop_reason=self.stop_reason,
            turns=self.turns,
            token_ids=np.asarray(self.token_ids, dtype=np.int32),
            logprobs=np.asarray(self.logprobs, dtype=np.float32),
            answer=self.answer,
            citations=self.citations,
            sources=self.sources,
            history=self.history,
            group=self.group,
            versions=versions,
            error=self.error,
            seconds=self.elapsed,
            created=created,
            id=self.meta.get("id") or uuid.uuid4().hex,
        )
