"""Questions whose answer follows from facts that passages tell, asked one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval.fictional.passages import source_of
from eval.fictional.question import Call, Question, Step
from eval.fictional.schema import KINDS, Relation, relation, relations_of
from eval.fictional.world import Entity, Value, World, path

_WHAT = {"person": "Who", "city": "Which city", "country": "Which country", "year": "Which year"}

Key = tuple[int, int]
Fact = tuple[Entity, Relation, Value]
Maker = Callable[[World, Key], Question | None]


def some(world: World, kind: str, *key: object) -> Entity:
    """A thing of a kind, by chance."""
    return Entity(kind, world.chance.below(world.counts[kind], "about", kind, *key))


def hops(length: int) -> Maker:
    """A maker of questions along chains of this many relations."""

    def make(world: World, key: Key) -> Question | None:
        kind, names = world.chance.pick(_CHAINS[length], "chain", *key)
        start = some(world, kind, *key)
        values = path(world, start, names)
        if values is None:
            return None
        subjects = [start, *(value for value in values[:-1] if isinstance(value, Entity))]
        if len(set(subjects)) < length:
            return None
        relations = [relation(at.kind, name) for at, name in zip(subjects, names, strict=True)]
        text = nested(world, start, relations) if length > 1 else ""
        facts = tuple(zip(subjects, relations, values, strict=True))
        return from_facts(world, f"{length}hop", text, world.name(values[-1]), facts)

    return make


def from_facts(world: World, kind: str, text: str, answer: str, facts: Sequence[Fact]) -> Question:
    """A question whose answer follows from facts that passages tell, asked one after the other; without
    a text of its own it asks for the first."""
    asked = tuple(of.question.format(s=world.name(s)) for s, of, _ in facts)
    sources = tuple(source_of(world, s, of) for s, of, _ in facts)
    values = tuple(world.name(value) for _, _, value in facts)
    return Question(
        kind=kind,
        text=text or asked[0],
        things=tuple(dict.fromkeys(s for s, _, _ in facts)),
        answers=(answer,),
        evidence=tuple(dict.fromkeys(sources)),
        calls=tuple(Call("search", query) for query in asked),
        difficulty=len(facts),
        taught=tuple(world.taught(s, of) for s, of, _ in facts),
        plan=_unsolved(world, facts),
        knowledge=tuple(
            f"{of.noun.format(s=world.name(s))}: {value}"
            for (s, of, _), value in zip(facts, values, strict=True)
        ),
        steps=tuple(map(Step, asked, values, sources)),
    )


def _unsolved(world: World, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The sub-questions, with `#1` for a thing that only the first finds, and so on."""
    found: dict[Value, str] = {}
    plan = []
    for number, (subject, of, value) in enumerate(facts, 1):
        plan.append(of.question.format(s=found.get(subject) or world.name(subject)))
        found.setdefault(value, f"#{number}")
    return tuple(plan)


def nested(world: World, start: Entity, relations: list[Relation]) -> str:
    """`What is the capital of the country of …?`, from the inside out."""
    phrase = world.name(start)
    for of in relations:
        phrase = of.noun.format(s=phrase)
    what = _WHAT.get(relations[-1].target, "What")
    return f"{what} is {phrase}?"


def wordings(world: World, subject: Entity, of: Relation) -> tuple[str, ...]:
    """Other ways to ask for one fact than the questions' own (`Relation.question`)."""
    own, noun = (text.format(s=world.name(subject)) for text in (of.question, of.noun))
    found = (nested(world, subject, [of]), f"Name {noun}.", f"Tell me {noun}.", f"T{noun[1:]}?")
    return tuple(text for text in found if text != own)


def _chains(length: int) -> list[tuple[str, tuple[str, ...]]]:
    """Every chain of relations that are told and do not change, of a length, from every kind.

    A capital of one's own country and the like come back to where they began: such chains are
    left to the check for repeated subjects.
    """
    found: list[tuple[str, tuple[str, ...]]] = []

    def extend(kind: str, at: str, names: tuple[str, ...]) -> None:
        if len(names) == length:
            found.append((kind, names))
            return
        for of in relations_of(at):
            last = len(names) + 1 == length
            if of.statements and of.target != "smiles" and of.literal <= last:
                extend(kind, of.target if not of.literal else at, (*names, of.name))

    for kind in KINDS:
        extend(kind, kind, ())
    return found


_CHAINS = {length: _chains(length) for length in range(1, 5)}
