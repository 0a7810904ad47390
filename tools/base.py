"""What a tool is: a name, a typed argument model and one async method.

From a `Tool` follow its tag (`<search>…</search>`), its OpenAI function schema, its node in the
state machine and its command-line help. A tool knows nothing of policies, tokens or the graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from kg.errors import TurnwiseError, UsageError
from tools.withheld import Withheld

#: Key of `Observation.data` in a result that was tampered with; see `SearchTool.run`.
MISLED = "misled"
#: Key of `Observation.data` in what stands for the result of a call that the machine failed.
FAULT = "fault"


def freeze(value: object, *names: str) -> None:
    """Turn the named fields of a frozen dataclass into tuples.

    Checkpoints and JSON give lists back; the records themselves hold tuples.
    """
    for name in names:
        object.__setattr__(value, name, tuple(getattr(value, name)))


class Verdict(StrEnum):
    """What the policy said of the last observation (ReSeek's judge action)."""

    HELPFUL = "yes"
    UNHELPFUL = "no"


@dataclass(frozen=True, slots=True)
class Source:
    """A passage, triple or computed result that an observation shows.

    Attributes:
        number: the citation number within the episode, starting at 1; 0 before it is given one.
        id: the passage id, stable across index rebuilds.
        title: what a reader sees as the name of the source.
        text: the text that was shown.
        score: the retriever's score, higher is better; its scale is the tool's own.
        origin: the file or URL that the text came from.
        digest: SHA-256 of the stored text (hex), the provenance stamp.
    """

    id: str
    title: str
    text: str
    score: float = 0.0
    origin: str = ""
    digest: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool call gave back, before any action format renders it.

    Attributes:
        tool: name of the tool that ran; `""` for a message of the runtime itself.
        text: what the policy is shown when the tool has no sources.
        sources: what the policy is shown otherwise, each with its citation number.
        error: a one-line failure; the policy sees it and may try again.
        verdict: set by the judge tool only.
        truncated: whether the output cap cut the text or the sources.
        seconds: wall time of the call.
        data: the tool's structured result, JSON values only.
    """

    tool: str
    text: str = ""
    sources: tuple[Source, ...] = ()
    error: str | None = None
    verdict: Verdict | None = None
    truncated: bool = False
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(self, "sources")

    @property
    def misled(self) -> bool:
        """Whether the runtime had the tool withhold what it found: the result is not the tool's best."""
        return MISLED in self.data

    @property
    def fault(self) -> bool:
        """Whether the call failed for no reason of its own: it ran out of time, or the tool broke.
        Another time the same call may succeed."""
        return FAULT in self.data


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of the episode that calls it.

    Attributes:
        turn: from 0.
        withheld: passages that this call may not show, where it is made to go wrong. A tool that heeds
            it marks its result (`Observation.misled`).
    """

    question: str
    turn: int = 0
    withheld: Withheld | None = None


class ToolError(TurnwiseError):
    """A call failed in a way the policy should see and may recover from."""


class ArgumentsError(ToolError):
    """The arguments do not fit the tool's model; the message says which and why."""


class Tool(ABC):
    """One tool. Subclasses set the class attributes and implement `run`.

    Attributes:
        name: the tag and function name, lower case.
        family: the graph node that runs it; tools of one family share a node.
        description: one sentence for the policy.
        example: a body for the tag form, shown in the prompt.
        Arguments: the pydantic model of the arguments.
        body: the field that takes the text between the tags when it is not a JSON object.
        counts: whether a call spends the tool-call budget.
        free_text: whether case and edges of its texts mean nothing, so that calls that differ in them
            alone are one call.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    description: ClassVar[str]
    example: ClassVar[str]
    Arguments: ClassVar[type[BaseModel]]
    body: ClassVar[str]
    counts: ClassVar[bool] = True
    free_text: ClassVar[bool] = False

    @abstractmethod
    async def run(self, arguments: Any, context: ToolContext) -> Observation:
        """Execute one call; `arguments` is an instance of `self.Arguments`.

        Raises:
            ToolError: for a failure that the policy should see.
        """

    @property
    def version(self) -> str:
        """Identifies the tool's data (an index digest, say), so that a recording can be trusted."""
        return "1"

    def check(self, arguments: dict[str, Any]) -> BaseModel:
        """Validate raw arguments.

        Raises:
            ArgumentsError: naming the first wrong field.
        """
        try:
            return self.Arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "arguments"
            raise ArgumentsError(f"{self.name}: {where}: {first['msg']}") from error

    def schema(self) -> dict[str, Any]:
        """The OpenAI function schema of this tool."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.Arguments.model_json_schema(),
            },
        }


class Toolbox:
    """The tools of one run, by name.

    Raises:
        UsageError: two tools of the same name.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise UsageError(f"two tools are named '{tool.name}'")
            self._tools[tool.name] = tool

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __len__(self) -> int:
        return len(self._tools)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order given."""
        return tuple(self._tools)

    @property
    def families(self) -> tuple[str, ...]:
        """The families, each once, in order of first appearance."""
        return tuple(dict.fromkeys(tool.family for tool in self))

    @property
    def versions(self) -> dict[str, str]:
        """Each tool's data version, recorded with every trajectory."""
        return {tool.name: tool.version for tool in self}
