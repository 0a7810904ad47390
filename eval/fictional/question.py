"""One question about a world, with its answer, gold evidence and gold tool sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.task import Task
from eval.fictional.split import split_of
from eval.fictional.world import Entity, World


@dataclass(frozen=True)
class Call:
    """One step of a gold tool sequence.

    Attributes:
        tool: `search`, `graph` or `chemistry`.
        query: what is asked of it: words, SPARQL, or a property of the structure that was read.
    """

    tool: str
    query: str


@dataclass(frozen=True)
class Step:
    """One sub-question with its answer, and the passage that holds it."""

    question: str
    answer: str
    evidence: str

    def row(self) -> dict[str, Any]:
        """As in a task's `meta`; see `eval.analyses.given`."""
        return {
            "question": self.question,
            "answers": [self.answer],
            "evidence": [self.evidence],
        }


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        things: whose facts are needed, all of one split in a question that `questions` gives.
        answers: accepted; none when the right reply is to decline.
        evidence: ids of passages that hold what is needed.
        calls: gold tool sequence.
        difficulty: 1 (one passage) upwards.
        taught: for each fact on the way, whether it is one to be taught.
        plan: the question as sub-questions, `#1` standing for what the first of them finds, and
            `knowledge` the facts that answer it.
        steps: sub-questions that have one answer each, in order; none where one has a list, or two.
    """

    kind: str
    text: str
    things: tuple[Entity, ...]
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    calls: tuple[Call, ...]
    difficulty: int
    taught: tuple[bool, ...] = ()
    plan: tuple[str, ...] = ()
    knowledge: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def task(self, world: World, number: int) -> Task:
        """As a task; its split and everything else is in `meta`."""
        return Task(
            id=f"world-{world.seed}-{number}",
            question=self.text,
            answers=self.answers,
            answerable=bool(self.answers),
            kind=self.kind,
            evidence=self.evidence,
            meta={
                "split": split_of(world, self.things),
                "difficulty": self.difficulty,
                "calls": [{"tool": call.tool, "query": call.query} for call in self.calls],
                "taught": list(self.taught),
                "plan": list(self.plan),
                "knowledge": list(self.knowledge),
                "steps": [step.row() for step in self.steps],
                **self.extra,
            },
        )
