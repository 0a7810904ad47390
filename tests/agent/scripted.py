"""A policy whose replies are given, and search tools for it to call."""

import asyncio
from typing import ClassVar

from pydantic import BaseModel

from agent.policies.base import Completion, FinishReason, Policy
from tools.base import Observation, Source, Tool

HAPPY = [
    "<search>Oganessian</search>",
    "<judge>yes</judge>",
    "<answer>oganesson [1]</answer>",
]


class ScriptedPolicy(Policy):
    """What a model puts out is the input of these tests."""

    name = "scripted"
    version = "0"

    def __init__(self, replies, template=None, delay=0.0, context_length=0):
        self.replies = list(replies)
        self.template = template
        self.delay = delay
        self.context_length = context_length
        self.native_tools = template is None
        self.requests = []

    async def generate(self, requests):
        if self.delay:
            await asyncio.sleep(self.delay)
        return [self._one(request) for request in requests]

    def _one(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0) if self.replies else "<answer>out of replies</answer>"
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Completion):
            return reply
        if request.on_text:
            request.on_text(reply)
        ids = tuple(self.template.encode(reply)) if self.template else ()
        cut = len(ids) > request.sampling.max_tokens
        ids = ids[: request.sampling.max_tokens]
        text = self.template.decode(ids) if self.template else reply
        finish = FinishReason.LENGTH if cut else FinishReason.STOP
        return Completion(text, ids, tuple(-0.5 for _ in ids), finish)

    def prompt(self, index):
        """The text that the policy saw at its call number `index`."""
        request = self.requests[index]
        if self.template:
            return self.template.tokenizer.decode(request.token_ids)
        return "\n".join(f"{m['role']}: {m['content']}" for m in request.messages)


class Query(BaseModel):
    query: str


class LookUp(Tool):
    """A search whose subclasses say what it finds."""

    name: ClassVar[str] = "search"
    family: ClassVar[str] = "search"
    description: ClassVar[str] = "Search."
    example: ClassVar[str] = "query"
    Arguments: ClassVar[type[BaseModel]] = Query
    body: ClassVar[str] = "query"
    free_text: ClassVar[bool] = True


class FactTool(LookUp):
    """Gives prepared passages; what `run` does can be swapped."""

    def __init__(self, passages=("Oganesson is named after Yuri Oganessian.",), action=None):
        self.passages = passages
        self.action = action
        self.queries = []

    async def run(self, arguments, context):
        self.queries.append(arguments.query)
        if self.action:
            await self.action()
        sources = tuple(
            Source(id=f"{arguments.query}/{i}", title=f"T{i}", text=text)
            for i, text in enumerate(self.passages)
        )
        return Observation(self.name, sources=sources)
