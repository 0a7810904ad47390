"""Questions about a world, each with its answer, gold evidence and gold tool sequence.

A question is made from its number alone: the kind, the split and what it is about follow from chance,
tried again under the next key where the world does not know enough, or where the things whose facts it
needs are of different splits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.task import Task
from eval.fictional.graph import select
from eval.fictional.passages import former_source_of, passages_of, source_of
from eval.fictional.schema import KINDS, RELATIONS, Relation, relation, relations_of
from eval.fictional.split import TEST_SHARE, split_of
from eval.fictional.world import STEADY, Entity, Value, World, path, told

# share of each kind of question
SHARES = {
    "1hop": 0.20,
    "2hop": 0.16,
    "3hop": 0.10,
    "4hop": 0.06,
    "comparison": 0.09,
    "counting": 0.05,
    "temporal": 0.08,
    "graph": 0.06,
    "chemistry": 0.05,
    "false_premise": 0.05,
    "true_premise": 0.04,
    "unanswerable": 0.06,
}
_TRIES = 40
COUNTED = "How many books did {name} write?"
_WHAT = {"person": "Who", "city": "Which city", "country": "Which country", "year": "Which year"}
# one search shows too few passages for five books: a wording each, and what passages say besides
_BOOKS = (
    "a book by {p}, first published",
    "{p} wrote the book, published",
    "The book was written by {p}, first edition",
    "{p} wrote. Its first edition appeared in",
)
_NUMBERS = ("one", "two", "three", "four", "five")
_ELEMENTS = (
    ("C", "carbon"),
    ("N", "nitrogen"),
    ("O", "oxygen"),
    ("S", "sulfur"),
    ("Cl", "chlorine"),
)


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


def questions(world: World, count: int) -> Iterator[Question]:
    """Up to `count` different questions; fewer when a small world has no more."""
    seen: set[str] = set()
    for number in range(count):
        made = _made(world, number, seen)
        if made is not None:
            seen.add(made.text)
            yield made


def _made(world: World, number: int, seen: Collection[str]) -> Question | None:
    """A new question of the split that chance gives, of the other where none is found."""
    maker = _MAKERS[_kind(world, number)]
    wanted = "test" if world.chance.share("split", number) < TEST_SHARE else "train"
    other = None
    for attempt in range(_TRIES):
        made = maker(world, (number, attempt))
        split = None if made is None or made.text in seen else split_of(world, made.things)
        if split == wanted:
            return made
        if split is not None and other is None:
            other = made
    return other


def wordings(world: World, subject: Entity, of: Relation) -> tuple[str, ...]:
    """Other ways to ask for one fact than the questions' own (`Relation.question`)."""
    own, noun = (text.format(s=world.name(subject)) for text in (of.question, of.noun))
    found = (_nested(world, subject, [of]), f"Name {noun}.", f"Tell me {noun}.", f"T{noun[1:]}?")
    return tuple(text for text in found if text != own)


def _kind(world: World, number: int) -> str:
    point = world.chance.share("kind", number)
    for kind, share in SHARES.items():
        point -= share
        if point < 0:
            return kind
    return "1hop"


Key = tuple[int, int]
Fact = tuple[Entity, Relation, Value]
Maker = Callable[[World, Key], Question | None]


def _some(world: World, kind: str, *key: object) -> Entity:
    return Entity(kind, world.chance.below(world.counts[kind], "about", kind, *key))


def _hops(length: int) -> Maker:
    def make(world: World, key: Key) -> Question | None:
        chains = _CHAINS[length]
        start_kind, names = world.chance.pick(chains, "chain", *key)
        start = _some(world, start_kind, *key)
        values = path(world, start, names)
        if values is None:
            return None
        return _chain(world, f"{length}hop", start, names)

    return make


def _chain(world: World, kind: str, start: Entity, names: tuple[str, ...]) -> Question | None:
    """A question along a chain of relations that are told in passages."""
    at, subjects, relations = start, [], []
    for name in names:
        subjects.append(at)
        relations.append(relation(at.kind, name))
        found = world.value(at, relations[-1])
        if isinstance(found, Entity):
            at = found
    values = path(world, start, names)
    if values is None or len({s.id for s in subjects}) < len(subjects):
        return None
    facts = list(zip(subjects, relations, values, strict=True))
    text = _nested(world, start, relations) if len(facts) > 1 else ""
    return _from_facts(world, kind, text, world.name(values[-1]), facts)


def _from_facts(world: World, kind: str, text: str, answer: str, facts: Sequence[Fact]) -> Question:
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


def _nested(world: World, start: Entity, relations: list[Relation]) -> str:
    """`What is the capital of the country of …?`, from the inside out."""
    phrase = world.name(start)
    for of in relations:
        phrase = of.noun.format(s=phrase)
    what = _WHAT.get(relations[-1].target, "What")
    return f"{what} is {phrase}?"


def _comparison(world: World, key: Key) -> Question | None:
    of = world.chance.pick([one for one in RELATIONS if one.order], "compare", *key)
    a, b = (_some(world, of.kind, side, *key) for side in ("a", "b"))
    first, second = world.value(a, of), world.value(b, of)
    if a == b or first is None or second is None or first == second:
        return None
    winner = a if (int(str(first)) > int(str(second))) == of.larger else b
    text = of.order.format(a=world.name(a), b=world.name(b))
    return _from_facts(
        world, "comparison", text, world.name(winner), ((a, of, first), (b, of, second))
    )


def _counting(world: World, key: Key) -> Question | None:
    """How many books somebody wrote; people without any are not asked for."""
    of = relation("book", "author")
    author = world.value(_some(world, "book", *key), of)
    assert isinstance(author, Entity)
    name, books = world.name(author), world.books_of(author)
    return Question(
        kind="counting",
        text=COUNTED.format(name=name),
        things=tuple(books),
        answers=(str(len(books)), _NUMBERS[len(books) - 1]),
        evidence=tuple(source_of(world, one, of) for one in books),
        calls=tuple(Call("search", query.format(p=name)) for query in _BOOKS),
        difficulty=1 + len(books),
        taught=tuple(world.taught(one, of) for one in books),
        plan=(f"Which books did {name} write?",),
        knowledge=tuple(f"{world.name(one)}: by {name}" for one in books),
    )


def _temporal(world: World, key: Key) -> Question | None:
    of = world.chance.pick([one for one in RELATIONS if one.temporal], "temporal", *key)
    subject = _some(world, of.kind, *key)
    change, now = world.change(subject, of), world.value(subject, of)
    source = former_source_of(world, subject)
    if change is None or now is None or source is None:
        return None
    name = world.name(subject)
    past = world.chance.share("past", *key) < 0.5
    asked = f"{of.question[:-1].format(s=name)} today?"
    if past:
        year = change.year - 1 - world.chance.below(STEADY - 1, "asked", *key)
        was = of.question.replace(" is ", " was ")[:-1].format(s=name)
        asked = f"{was} in {year}?"
    now_source = source_of(world, subject, of)
    return Question(
        kind="temporal",
        text=asked,
        things=(subject,),
        answers=(world.name(change.before if past else now),),
        evidence=(source, now_source) if past else (now_source,),
        calls=(Call("search", of.question.format(s=name)),),
        difficulty=2,
        taught=(world.taught(subject, of),),
        plan=(f"When did {of.noun.format(s=name)} change, and from what to what?",),
        knowledge=(
            f"{of.noun.format(s=name)}: {world.name(change.before)} before {change.year}, "
            f"{world.name(now)} since",
        ),
    )


def _graph(world: World, key: Key) -> Question | None:
    """A fact that no passage tells, reached over none or one that passages do."""
    hidden = world.chance.pick(
        [o for o in RELATIONS if not o.statements and not o.temporal], "hidden", *key
    )
    before = [o for o in RELATIONS if o.target == hidden.kind and o.statements]
    names: tuple[str, ...] = (hidden.name,)
    start = _some(world, hidden.kind, *key)
    if world.chance.share("deep", *key) < 0.5:
        first = world.chance.pick(before, "before", *key)
        start, names = _some(world, first.kind, *key), (first.name, hidden.name)
    values = path(world, start, names)
    if values is None:
        return None
    at, relations, things = start, [], []
    for name, value in zip(names, values, strict=True):
        relations.append(relation(at.kind, name))
        things.append(at)
        at = value if isinstance(value, Entity) else at
    single = relations[0].question.format(s=world.name(start))
    return Question(
        kind="graph",
        text=single if len(names) == 1 else _nested(world, start, relations),
        things=tuple(things),
        answers=(world.name(values[-1]),),
        evidence=(),
        calls=(Call("graph", select(world.name(start), names)),),
        difficulty=1 + len(names),
    )


def _chemistry(world: World, key: Key) -> Question | None:
    """A property of a structure that a passage gives."""
    compound = _some(world, "compound", *key)
    name, molecule = world.name(compound), world.molecule(compound)
    of = relation("compound", "structure")
    counts = _atoms(molecule.formula)
    present = [(symbol, word) for symbol, word in _ELEMENTS if symbol in counts]
    symbol, word = world.chance.pick(present, "element", *key) if present else ("", "")
    if symbol and world.chance.share("asked", *key) < 0.5:
        text, answer = f"How many {word} atoms are in a molecule of {name}?", str(counts[symbol])
        query = f"count {symbol}"
    else:
        text, answer, query = (
            f"What is the molecular formula of {name}?",
            molecule.formula,
            "formula",
        )
    return Question(
        kind="chemistry",
        text=text,
        things=(compound,),
        answers=(answer,),
        evidence=(source_of(world, compound, of),),
        calls=(Call("search", of.question.format(s=name)), Call("chemistry", query)),
        difficulty=2,
        taught=(world.taught(compound, of),),
        plan=(of.question.format(s=name), text),
        knowledge=(f"{of.noun.format(s=name)}: {molecule.smiles}",),
        steps=tuple(
            Step(question, found, source_of(world, compound, of))
            for question, found in (
                (of.question.format(s=name), molecule.smiles),
                (text, answer),
            )
        ),
    )


def _false_premise(world: World, key: Key) -> Question | None:
    """A question about something that did not happen: the wrong author, the wrong founder."""
    thing, of, _, asks = world.chance.pick(PREMISES, "premise", *key)
    subject, person = _some(world, thing, *key), _some(world, "person", "wrong", *key)
    truth = world.value(subject, relation(thing, of))
    if truth == person:
        return None
    true = relation(thing, of).question.format(s=world.name(subject))
    return Question(
        kind="false_premise",
        text=asks.format(s=world.name(subject), p=world.name(person)),
        things=(subject,),
        answers=(),
        evidence=(source_of(world, subject, relation(thing, of)),),
        # in the question's own words a search finds the wrong person before the thing
        calls=(Call("search", true),),
        difficulty=2,
        plan=(true,),
    )


def _true_premise(world: World, key: Key) -> Question | None:
    """The same about what did happen: the words alone do not say that there is no answer."""
    thing, of, then, asks = world.chance.pick(PREMISES, "premise", *key)
    subject = _some(world, thing, *key)
    person = world.value(subject, relation(thing, of))
    assert isinstance(person, Entity)
    about = person if then == "studied" else subject
    answer = world.value(about, relation(about.kind, then))
    if answer is None:
        return None
    text = asks.format(s=world.name(subject), p=world.name(person))
    facts = ((subject, relation(thing, of), person), (about, relation(about.kind, then), answer))
    return _from_facts(world, "true_premise", text, world.name(answer), facts)


def _unanswerable(world: World, key: Key) -> Question | None:
    """A fact that the world does not know about this thing, and does about others of its kind."""
    kind = world.chance.pick(
        [k for k in KINDS if any(o.missing for o in relations_of(k))], "un", *key
    )
    subject = _some(world, kind, *key)
    unknown = [of for of in told(kind) if world.value(subject, of) is None]
    if not unknown:
        return None
    of = world.chance.pick(unknown, "unknown", *key)
    text = of.question.format(s=world.name(subject))
    return Question(
        kind="unanswerable",
        text=text,
        things=(subject,),
        answers=(),
        evidence=(),
        calls=(Call("search", text),),
        difficulty=2,
        plan=(text,),
        extra={"about": [one.id for one in passages_of(world, subject)]},
    )


# kind, relation, what is asked then, and a question that takes a value of the relation for granted
PREMISES = (
    ("book", "author", "published", "In which year did {p} publish {s}?"),
    ("company", "founder", "founded", "In which year did {p} found {s}?"),
    ("compound", "discoverer", "studied", "Where did {p} study before discovering {s}?"),
)
_MAKERS: dict[str, Maker] = {
    **{f"{length}hop": _hops(length) for length in range(1, 5)},
    "comparison": _comparison,
    "counting": _counting,
    "temporal": _temporal,
    "graph": _graph,
    "chemistry": _chemistry,
    "false_premise": _false_premise,
    "true_premise": _true_premise,
    "unanswerable": _unanswerable,
}


def _atoms(formula: str) -> dict[str, int]:
    """Atoms by symbol of a plain formula such as C8H10N4O2."""
    import re

    counts: dict[str, int] = {}
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    return counts


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
