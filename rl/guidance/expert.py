"""A scripted expert that plays episodes through the real tools, to demonstrate the action format.

It knows the gold evidence and answers of its tasks and nothing of the index: what a search returns
decides what it does next. It asks; judges the result; on a hit answers with the source's number or
goes on with the next hop; on a miss asks again in other words; and abstains when the evidence
does not turn up. A share of its first queries is deliberately misleading, so that the
demonstrations hold recoveries; those queries are marked as not sampled and carry no loss.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.formats import TagsFormat
from agent.policies.base import Completion, Message, Policy, Request
from agent.policies.chat import ChatTemplate
from agent.task import Task
from eval.metrics import contains, normalise
from tools.base import Toolbox

MAX_SEARCHES = 3
ABSTAIN = "<abstain>The results do not say.</abstain>"
_LINE = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)
_FUNCTION_WORDS = frozenset(
    """a an the of in on at to for from by with and or as is are was were be been do does did has
    have had what which who whom whose when where why how that this these those it its there many
    much name known called""".split()
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A corpus passage, as the expert knows it."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class _Line:
    """One numbered passage of a rendered observation, `title: text`."""

    number: int
    text: str


class ExpertPolicy(Policy):
    """Plays its tasks by script; token-exact with another policy's template.

    Args:
        template: the template of the policy that will be trained.
        tasks: what it may be asked.
        passages: the corpus by passage id, to recognise gold evidence.
        misleading: share of first queries that go astray on purpose.
        seed: of the choice which ones do.
    """

    name = "expert"
    version = "1"

    def __init__(
        self,
        template: ChatTemplate,
        tasks: Iterable[Task],
        passages: Mapping[str, Passage],
        misleading: float = 0.12,
        seed: int = 0,
    ) -> None:
        self.template = template
        self.misleading = misleading
        self.seed = seed
        self._neutral = TagsFormat(Toolbox()).neutralise
        self._tasks = {self._neutral(task.question): task for task in tasks}
        self._passages = passages
        self._titles = sorted({passage.title for passage in passages.values()})

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The scripted reply to each conversation."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Completion:
        question = next(m["content"] for m in request.messages if m["role"] == "user")
        text, sampled = self._next(self._tasks[question], request.messages)
        assert self.template is not None
        return Completion(text, tuple(self.template.encode(text)), sampled=sampled)

    def _next(self, task: Task, messages: Sequence[Message]) -> tuple[str, bool]:
        """The next action and whether the policy should learn it."""
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        if not replies:
            return self._first(task)
        if replies[-1].startswith("<search>"):
            seen = _lines(messages[:-1])
            helpful = bool(self._new(task, _lines(messages[-1:]), seen))
            return f"<judge>{'yes' if helpful else 'no'}</judge>", True
        searches = [reply for reply in replies if reply.startswith("<search>")]
        shown = _lines(messages)
        if replies[-1] == "<judge>yes</judge>" and (answer := self._answer(task, shown)):
            return answer, True
        query = self._another(task, shown, searches)
        if query is None or len(searches) >= self._limit(task):
            return ABSTAIN, True
        return f"<search>{query}</search>", True

    def _first(self, task: Task) -> tuple[str, bool]:
        chance = random.Random(f"{self.seed}:{task.id}")
        if task.answerable is not False and chance.random() < self.misleading:
            return f"<search>{chance.choice(self._titles)}</search>", False
        return f"<search>{task.question}</search>", True

    def _limit(self, task: Task) -> int:
        """A question without evidence gets one more try, one with several hops a try each."""
        return min(MAX_SEARCHES + 1, max(2, len(task.evidence) + 1))

    def _gold(self, task: Task, line: _Line) -> str | None:
        """The id of the gold passage that a shown line is, if it is one."""
        for key in task.evidence:
            passage = self._passages.get(key)
            if passage and self._same(passage, line):
                return key
        if not task.evidence and any(contains(line.text, answer) for answer in task.answers):
            return line.text[:80] if overlap(task.question, line.text) >= 2 else None
        return None

    def _same(self, passage: Passage, line: _Line) -> bool:
        title, text = (
            self._neutral(" ".join(part.split())) for part in (passage.title, passage.text)
        )
        body = line.text.removeprefix(f"{title}: ")
        return body != line.text and body[:80] in text

    def _new(self, task: Task, lines: Sequence[_Line], seen: Sequence[_Line]) -> set[str]:
        """Gold evidence in `lines` that was not seen before."""
        if task.answerable is False:
            return set()
        old = {self._gold(task, line) for line in seen}
        found = {self._gold(task, line): line for line in lines}
        fresh = {key for key in found if key is not None and key not in old}
        if len(task.evidence) == 1 and not any(
            contains(found[key].text, answer) for key in fresh for answer in task.answers
        ):
            return set()
        return fresh

    def _answer(self, task: Task, shown: Sequence[_Line]) -> str | None:
        """The answer with its source, once all evidence is on the table."""
        gold = {key: line for line in shown if (key := self._gold(task, line))}
        if task.answerable is False or not gold or not set(task.evidence) <= set(gold):
            return None
        holding = [
            (answer, line)
            for answer in task.answers
            for line in reversed(gold.values())
            if contains(line.text, answer)
        ]
        if holding:
            answer, line = holding[0]
            return f"<answer>{answer} [{line.number}]</answer>"
        if normalise(task.answers[0]) in ("yes", "no") or task.kind == "counting":
            numbers = ", ".join(str(line.number) for line in gold.values())
            return f"<answer>{task.answers[0]} [{numbers}]</answer>"
        return None

    def _another(self, task: Task, shown: Sequence[_Line], searches: Sequence[str]) -> str | None:
        """A query not made yet: the next hop's entity once it was read, else the keywords."""
        gold = {self._gold(task, line): line for line in shown}
        read = normalise(
            " ".join([task.question, *(line.text for key, line in gold.items() if key)])
        )
        missing = [
            self._passages[k].title for k in task.evidence if k in self._passages and k not in gold
        ]
        entities = [re.sub(r"\s*\(.*?\)", "", title) for title in missing] if any(gold) else []
        candidates = [e for e in entities if normalise(e) and normalise(e) in read]
        if not entities:
            candidates.append(keywords(task.question))
        made = {normalise(search) for search in searches}
        fresh = [q for q in candidates if q and normalise(f"<search>{q}</search>") not in made]
        return fresh[0] if fresh else None


class RecitingPolicy(Policy):
    """Answers its tasks at once, as a policy would that knew them; token-exact like `ExpertPolicy`.

    Args:
        template: the template of the policy that will be trained.
        tasks: what it may be asked; the first accepted answer is given.
    """

    name = "reciting"
    version = "1"

    def __init__(self, template: ChatTemplate, tasks: Iterable[Task]) -> None:
        self.template = template
        neutral = TagsFormat(Toolbox()).neutralise
        self._answers = {neutral(task.question): task.answers[0] for task in tasks}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The answer to each question."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Completion:
        question = next(m["content"] for m in request.messages if m["role"] == "user")
        text = f"<answer>{self._answers[question]}</answer>"
        assert self.template is not None
        return Completion(text, tuple(self.template.encode(text)))


def keywords(question: str) -> str:
    """The question without function words and punctuation: the expert's second way to ask."""
    words = re.findall(r"[\w'’.-]+\w|\w", question)
    return " ".join(word for word in words if word.lower() not in _FUNCTION_WORDS)


def _lines(messages: Sequence[Message]) -> list[_Line]:
    results = [m["content"] for m in messages if m["role"] == "user"]
    return [_Line(int(number), text) for r in results for number, text in _LINE.findall(r)]


def overlap(question: str, text: str) -> int:
    """How many of the question's keywords a text holds."""
    words = set(normalise(text).split())
    return sum(word in words for word in set(normalise(keywords(question)).split()))
