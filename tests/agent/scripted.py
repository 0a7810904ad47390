"""A policy whose replies are given: the model's output is the input of these tests."""

import asyncio

from agent.policies.base import Completion, FinishReason, Policy


class ScriptedPolicy(Policy):
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
