"""The judge action of ReSeek: the policy states whether the last observation helps.

Source: ReSeek (arXiv 2510.00568), the `<judge>` action. The tool only records the verdict; what it
does to the context (omit the rejected observation, or keep it with its label) is the runtime's
context rule.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from tools.base import Observation, Tool, ToolContext, Verdict


class JudgeArguments(BaseModel):
    """The verdict, as `yes` or `no`."""

    verdict: Verdict = Field(description="yes if the last result helps to answer, otherwise no")

    @field_validator("verdict", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().strip(".").lower() if isinstance(value, str) else value


class JudgeTool(Tool):
    """Records a verdict on the last observation; costs no tool call."""

    name: ClassVar[str] = "judge"
    family: ClassVar[str] = "judge"
    description: ClassVar[str] = (
        "Say whether the last result helps to answer the question: yes or no."
    )
    example: ClassVar[str] = "yes"
    Arguments: ClassVar[type[BaseModel]] = JudgeArguments
    body: ClassVar[str] = "verdict"
    counts: ClassVar[bool] = False

    async def run(self, arguments: JudgeArguments, context: ToolContext) -> Observation:
        """Turn the verdict into an observation that tells the policy what it may do next."""
        helpful = arguments.verdict is Verdict.HELPFUL
        text = "Kept." if helpful else "Dropped. Search again or abstain."
        return Observation(self.name, text, verdict=arguments.verdict)
