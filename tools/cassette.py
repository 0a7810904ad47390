"""A tool that answers from a recording: calls that were made before are not made again.

The name and the idea are those of HTTP recorders such as VCR. Episodes that go on from the same
turn get the same result for the same call, so that they differ only in what they ask.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from tools.base import Observation, Tool, ToolContext, ToolError

_OWN = ("name", "family", "description", "example", "Arguments", "body", "counts", "free_text")


class NotOnCassetteError(ToolError):
    """A call that was not recorded, of a tool that only plays its recording."""


@dataclass(frozen=True, slots=True)
class Take:
    """A recorded call and what it gave.

    Attributes:
        tool: its name.
        arguments: as the policy wrote them, not validated.
        observation: what came back, a failure included.
        turn: when it was made, from 0.
    """

    tool: str
    arguments: dict[str, Any]
    observation: Observation
    turn: int = 0


class CassetteTool(Tool):
    """Another tool with a recording before it.

    A call is on the cassette when its validated arguments equal those of a take. Of several such
    takes the first one counts that was made in the caller's turn or later, else the last: a call
    that failed once and then worked does so again. What a call gave that was made to go wrong is
    for such calls alone, and such a call gets nothing else.

    Args:
        tool: the tool; it is asked only for what is not recorded.
        takes: recorded calls; those of other tools, and those whose arguments do not fit, are left
            out.
        live: whether the tool itself may be asked.

    Attributes:
        replayed, ran, missed: calls so far that came from the recording, went to the tool, or could
            do neither.
    """

    def __init__(self, tool: Tool, takes: Iterable[Take], live: bool = True) -> None:
        for field in _OWN:  # what a tool is, it says in attributes of its class
            vars(self)[field] = getattr(tool, field)
        self.tool = tool
        self.live = live
        self.replayed = self.ran = self.missed = 0
        self._takes: dict[tuple[str, bool], list[Take]] = {}
        for take in sorted(takes, key=lambda take: take.turn):
            self._keep(take)

    async def run(self, arguments: Any, context: ToolContext) -> Observation:
        """The recorded result, or the tool's own.

        Raises:
            NotOnCassetteError: neither is to be had.
        """
        take = self._find(arguments, context)
        if take is not None:
            self.replayed += 1
            sources = tuple(replace(source, number=0) for source in take.observation.sources)
            return replace(take.observation, sources=sources)
        if not self.live:
            self.missed += 1
            raise NotOnCassetteError(f"{self.name}: not on the cassette")
        self.ran += 1
        return await self.tool.run(arguments, context)

    @property
    def version(self) -> str:
        """The tool's own."""
        return self.tool.version

    def _keep(self, take: Take) -> None:
        if take.tool != self.name:
            return
        try:
            arguments = self.check(take.arguments)
        except ToolError:  # such a call never reaches the tool
            return
        seen = take.observation
        for misled in (True, False) if seen.error is not None else (seen.misled,):
            self._takes.setdefault((_key(arguments), misled), []).append(take)

    def _find(self, arguments: BaseModel, context: ToolContext) -> Take | None:
        takes = self._takes.get((_key(arguments), context.withheld is not None))
        if not takes:
            return None
        return next((take for take in takes if take.turn >= context.turn), takes[-1])


class _AnyArguments(BaseModel):
    model_config = ConfigDict(extra="allow")


class AbsentTool(Tool):
    """Stands for a tool that is not here, under a cassette that knows some of its calls.

    Args:
        name: of the tool, and of its family.
        takes: recorded calls; they tell which argument the text between the tags is.
        version: of the tool's data, as recorded.
    """

    description: ClassVar[str] = "Not available."
    example: ClassVar[str] = "…"
    Arguments: ClassVar[type[BaseModel]] = _AnyArguments

    def __init__(self, name: str, takes: Iterable[Take], version: str = "") -> None:
        bodies = [
            next(iter(t.arguments)) for t in takes if t.tool == name and len(t.arguments) == 1
        ]
        vars(self).update(name=name, family=name, body=bodies[0] if bodies else "query")
        self._version = version

    async def run(self, arguments: Any, context: ToolContext) -> Observation:
        """Always fails.

        Raises:
            NotOnCassetteError: there is no tool behind the recording.
        """
        raise NotOnCassetteError(f"{self.name}: not on the cassette")

    @property
    def version(self) -> str:
        """As recorded."""
        return self._version


def _key(arguments: BaseModel) -> str:
    return json.dumps(arguments.model_dump(mode="json"), sort_keys=True)
