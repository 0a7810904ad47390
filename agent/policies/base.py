"""The policy interface: requests in, completions out, weights swapped in place.

A policy that has a tokenizer exposes it as `template` and is token-exact: it is given token ids and
returns the ids it sampled with their log-probabilities. A hosted API has `template = None` and is
given messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from agent.policies.chat import ChatTemplate
    from agent.policies.fingerprint import Fingerprint

Message: TypeAlias = dict[str, Any]


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy. Log-probabilities are always those of the model itself
            (temperature 1, untruncated), whatever is used to draw.
        top_p, top_k: truncation; 1.0 and 0 switch it off. Training rollouts must not truncate.
        max_tokens: the most tokens one turn may have.
        seed: of this one completion.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the draw differs from the model's own distribution by truncation."""
        return self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make.

    Attributes:
        messages: the conversation as chat messages; read by policies without a template.
        token_ids: the exact prompt; read by policies with a template.
        stop: strings that end the completion; the one that does is kept in its text.
        tools: OpenAI function schemas, for policies that take native tool calls.
        on_text: called with each new piece of text, from the event loop's thread.
        prompt_logprobs: also tell the log-probability of each prompt token; servers tell none.
    """

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    on_text: Callable[[str], None] | None = None
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy gave back.

    Attributes:
        text: decoded, stop string included.
        token_ids: int[n] as sampled; empty where the policy does not tell.
        logprobs: float[n] in nats under the untruncated model at temperature 1; empty likewise.
        reasoning: hidden reasoning that a server returned beside the text.
        tool_calls: native tool calls, as `{"id", "name", "arguments": str}`.
        sampled: False when a script, not the policy, chose the tokens (they carry no loss).
        prompt_logprobs: float[prompt] in nats where they were asked for and are told; NaN for the first.
        prompt_tokens, cached_tokens: size of the prompt, and how much of it came from a cache.
        reply_tokens: size of the reply where `token_ids` does not tell it; 0 where nobody does.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    finish: FinishReason = FinishReason.STOP
    reasoning: str = ""
    tool_calls: tuple[dict[str, str], ...] = ()
    sampled: bool = True
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reply_tokens: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


class Policy(ABC):
    """A language model that acts.

    Attributes:
        name: as the user named it.
        version: digest of the weights, so that a trajectory tells what sampled it.
        template: how messages become tokens; None for a hosted API.
        context_length: the most tokens of prompt and completion together; 0 when unknown.
        native_tools: whether requests may carry tool schemas instead of prompt text.
        config_version: digest of what lies beside the weights and shapes a reply, such as the chat
            template; see `agent.policies.model_folder.config_version`. Empty for a hosted API.
        engine: what computes and in which number format, such as `vllm float32`: the same weights give
            other tokens under another. Of a hosted API its address. Empty where it is not known.
    """

    name: str
    version: str
    config_version: str = ""
    template: ChatTemplate | None = None
    context_length: int = 0
    native_tools: bool = False
    engine: str = ""

    @abstractmethod
    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete each request, in order. Concurrent calls are batched by the engine.

        Raises:
            PolicyUnavailableError: the engine or server cannot answer.
        """

    async def load(self, weights: Path) -> None:
        """Replace the weights by those of a folder of the same architecture.

        Raises:
            PolicyUnavailableError: this policy's weights are not ours to replace.
        """
        from kg.errors import PolicyUnavailableError

        raise PolicyUnavailableError(f"policy '{self.name}' cannot load weights from {weights}")

    def expect(self, callers: int) -> None:
        """Take no step before so many requests wait or run; 0 (the default) waits for none.

        With every caller in, what is computed together does not depend on which of them was quicker: the
        same requests give the same numbers to the last bit. An engine that cannot wait ignores it.
        """
        return None

    async def forget_prefixes(self) -> None:
        """Compute every prompt anew from now on, as an engine does that has just been started."""
        return None

    async def fingerprints(self) -> dict[str, Fingerprint]:
        """Of every tensor that the engine computes with, read back from its memory.

        The names are those of a model folder. Tied weights are there under each of their names, for an
        engine may hold them twice. What it cannot give back has an empty digest.

        Raises:
            PolicyUnavailableError: the weights are not in our reach.
        """
        from kg.errors import PolicyUnavailableError

        raise PolicyUnavailableError(f"policy '{self.name}' does not tell its weights")

    async def aclose(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        return None
