"""How a policy writes an action and reads an observation.

Two formats ship. `tags`: the policy writes `<search>…</search>`, `<judge>yes</judge>`,
`<answer>… [1]</answer>`; works with any chat model. `tool_call`: the model's own chat template with
tool schemas, calls in Hermes form (`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, used by
Qwen, Hermes, SmolLM3 and others) or as a server's native tool calls; plain text is the answer.

Observations are data: `render` breaks every action tag and special token inside them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import resources
from typing import Any

from agent.model_json import read_object
from agent.policies.base import Completion, FinishReason, Message
from agent.trajectory import Action, ActionKind
from kg.errors import UsageError
from tools.base import Observation, Source, Tool, Toolbox

# begins where blanks do, so that many of them are read once; a longer number cites nothing
_CITATIONS = re.compile(r"(?<!\s)\s*\[(\d{1,9}(?:\s*,\s*\d{1,9})*)\]")
# a thought that is not closed goes on to the end
_THINKING = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_DECLINED = re.compile(r"(?:ABSTAIN\b|[Aa]bstain(?=\s*(?:[:.]|$)))[\s:.\-]*")
_RESERVED = ("think", "answer", "abstain", "result", "tool_call", "tool_response", "tools")


class ActionFormat(ABC):
    """Parses replies and renders observations for one set of tools.

    Attributes:
        name: as in settings.
        stop: strings that end a turn.
        role: chat role that carries an observation.
        final_prefix: what the runtime writes to open a forced answer.
    """

    name: str
    stop: tuple[str, ...]
    role: str
    final_prefix: str

    def __init__(self, tools: Toolbox) -> None:
        self.tools = tools
        names = "|".join(re.escape(name) for name in (*_RESERVED, *tools.names))
        self._tag = re.compile(rf"<(?=\s*(?:/\s*)?(?:{names})\b)", re.IGNORECASE)

    @abstractmethod
    def system(self, prompt: str) -> str:
        """The system message: the given prompt plus how to act."""

    @abstractmethod
    def parse(self, completion: Completion, prefix: str = "") -> Action:
        """The action of a reply; malformed output becomes an action of that kind, never an error.

        Args:
            completion: what the policy produced.
            prefix: text that the runtime wrote before it (a forced answer's opening).
        """

    @abstractmethod
    def render(self, observation: Observation) -> str:
        """The text of an observation as the policy reads it, tags inside it broken."""

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """Tool schemas that go into the chat template; none in the `tags` format."""
        return ()

    def neutralise(self, text: str) -> str:
        """Break anything in foreign text that could pass for an action or a special token."""
        return self._tag.sub("\u2039", text).replace("<|", "\u2039|")

    def _body(self, observation: Observation) -> str:
        if observation.error is not None:
            return f"Error: {self.neutralise(observation.error)}"
        if not observation.sources:
            return self.neutralise(observation.text)
        return "\n".join(self._source(source) for source in observation.sources)

    def _source(self, source: Source) -> str:
        title = self.neutralise(" ".join(source.title.split()))
        return f"[{source.number}] {title}: {self.neutralise(' '.join(source.text.split()))}"


class TagsFormat(ActionFormat):
    """Actions as tags; the first complete one counts, text before it is the thought."""

    name = "tags"
    role = "user"
    final_prefix = "<answer>"

    def __init__(self, tools: Toolbox) -> None:
        super().__init__(tools)
        self._actions = (*tools.names, "answer", "abstain")
        self.stop = tuple(f"</{name}>" for name in self._actions)
        names = "|".join(self._actions)
        self._action = re.compile(rf"<({names})>(.*?)</\1>", re.DOTALL)

    def system(self, prompt: str) -> str:
        """The prompt followed by one line a tool."""
        lines = [f"<{t.name}>{t.example}</{t.name}>: {t.description}" for t in self.tools]
        return "\n".join([prompt, *lines, _text("tags.txt")])

    def parse(self, completion: Completion, prefix: str = "") -> Action:
        """Find the first complete action tag."""
        text = prefix + completion.text
        match = self._action.search(text)
        if match is None:
            return Action(ActionKind.MALFORMED, text=self._complaint(text))
        name, body = match[1], match[2].strip()
        thought = re.sub(r"</?think>", "", text[: match.start()]).strip()
        if name == "answer":
            return _answer(body, thought)
        if name == "abstain":
            return Action(ActionKind.ABSTAIN, text=body, thought=thought)
        return Action(
            ActionKind.TOOL, name, _tag_arguments(self.tools[name], body), thought=thought
        )

    def render(self, observation: Observation) -> str:
        """The observation inside one `result` tag."""
        return f"<result>\n{self._body(observation)}\n</result>"

    def _complaint(self, text: str) -> str:
        opened = re.findall(r"<([a-z_]+)>", text)
        unknown = [name for name in opened if name not in (*self._actions, "think")]
        if unknown:
            return f"there is no action <{unknown[0]}>"
        return f"<{opened[-1]}> is not closed" if opened else "no action tag"


class ToolCallFormat(ActionFormat):
    """Actions as the model's native tool calls; text without a call is the answer.

    What stands in `<think>` is the thought, together with the text before a call.
    """

    name = "tool_call"
    stop = ("</tool_call>",)
    role = "tool"
    final_prefix = ""

    def __init__(self, tools: Toolbox) -> None:
        super().__init__(tools)
        self._call = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

    def system(self, prompt: str) -> str:
        """The prompt and how to cite and abstain; the template adds the tools."""
        return "\n".join([prompt, _text("tool_call.txt")])

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """One OpenAI function schema a tool."""
        return tuple(tool.schema() for tool in self.tools)

    def parse(self, completion: Completion, prefix: str = "") -> Action:
        """A native call, else the first Hermes call in the text, else the answer."""
        thoughts, text = _thoughts_apart(prefix + completion.text)
        if completion.tool_calls:
            call = completion.tool_calls[0]
            return self._tool(call["name"], call["arguments"], _lines(*thoughts, text))
        match = self._call.search(text)
        if match is None:
            cut = completion.finish is FinishReason.LENGTH
            return self._final(text.strip(), cut, _lines(*thoughts))
        thought = _lines(*thoughts, text[: match.start()])
        written = read_object(match[1])
        if written is None or "name" not in written:
            return Action(
                ActionKind.MALFORMED, text="the tool call is not JSON with name and arguments"
            )
        return self._tool(str(written["name"]), written.get("arguments", {}), thought)

    def render(self, observation: Observation) -> str:
        """The bare text: the chat template wraps it."""
        return self._body(observation)

    def _tool(self, name: str, arguments: Any, thought: str) -> Action:
        if name not in self.tools:
            return Action(ActionKind.MALFORMED, text=f"there is no tool '{name}'")
        values = read_object(arguments or "{}") if isinstance(arguments, str) else arguments
        if not isinstance(values, dict):
            return Action(
                ActionKind.MALFORMED, text=f"the arguments of {name} are not a JSON object"
            )
        return Action(ActionKind.TOOL, name, values, thought=thought)

    def _final(self, text: str, cut: bool, thought: str) -> Action:
        if "<tool_call>" in text:
            return Action(ActionKind.MALFORMED, text="<tool_call> is not closed")
        if cut:
            return Action(ActionKind.MALFORMED, text="the reply was cut off: keep it short")
        if not text:
            return Action(ActionKind.MALFORMED, text="the reply is empty")
        if declined := _DECLINED.match(text):
            reason = text[declined.end() :].strip()
            return Action(ActionKind.ABSTAIN, text=reason, thought=thought)
        return _answer(text, thought)


FORMATS: dict[str, type[ActionFormat]] = {f.name: f for f in (TagsFormat, ToolCallFormat)}


def make_format(name: str, tools: Toolbox) -> ActionFormat:
    """The action format of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"no action format '{name}'", f"choose one of: {', '.join(FORMATS)}")
    return FORMATS[name](tools)


def system_prompt() -> str:
    """The built-in system prompt."""
    return _text("system.txt")


def reply_message(completion: Completion) -> Message:
    """The chat message of a reply, native tool calls included."""
    message: Message = {"role": "assistant", "content": completion.text}
    if completion.tool_calls:
        message["tool_calls"] = [_native(call) for call in completion.tool_calls[:1]]
    return message


def observation_message(role: str, text: str, completion: Completion) -> Message:
    """The chat message of a rendered observation, tied to the native call it answers."""
    if role != "tool":
        return {"role": role, "content": text}
    if not completion.tool_calls:
        return {"role": "user", "content": text}
    return {"role": "tool", "content": text, "tool_call_id": completion.tool_calls[0]["id"]}


def _native(call: dict[str, str]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _thoughts_apart(text: str) -> tuple[list[str], str]:
    """What stands in `<think>` tags, and the text without them."""
    return _THINKING.findall(text), _THINKING.sub("", text)


def _lines(*texts: str) -> str:
    """Those that are not blank, one below the other."""
    return "\n".join(text.strip() for text in texts if text.strip())


def _answer(body: str, thought: str) -> Action:
    numbers = [int(n) for group in _CITATIONS.findall(body) for n in re.findall(r"\d+", group)]
    text = _CITATIONS.sub("", body).strip()
    if not text:
        return Action(ActionKind.MALFORMED, text="the answer is empty", thought=thought)
    return Action(
        ActionKind.ANSWER, text=text, thought=thought, citations=tuple(dict.fromkeys(numbers))
    )


def _tag_arguments(tool: Tool, body: str) -> dict[str, Any]:
    """A JSON object when the body is one, otherwise the tool's single body field."""
    values = read_object(body) if body.startswith("{") else None
    return {tool.body: body} if values is None else values


def _text(name: str) -> str:
    return resources.files("agent.prompts").joinpath(name).read_text("utf-8").strip()


def render_history(history: Sequence[tuple[str, str]]) -> list[Message]:
    """Earlier questions and answers of a conversation as chat messages."""
    return [
        {"role": role, "content": text}
        for question, answer in history
        for role, text in (("user", question), ("assistant", answer))
    ]
