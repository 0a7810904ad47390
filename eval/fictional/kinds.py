"""Questions of every kind but chains: compared, counted, dated, of the graph, of structures, and ones
that have no answer."""

from __future__ import annotations

import re

from eval.fictional.chains import Key, from_facts, nested, some
from eval.fictional.graph import select
from eval.fictional.passages import former_source_of, passages_of, source_of
from eval.fictional.question import Call, Question, Step
from eval.fictional.schema import KINDS, RELATIONS, relation, relations_of
from eval.fictional.world import STEADY, Entity, World, path, told

COUNTED = "How many books did {name} write?"
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
# kind, relation, what is asked then, and a question that takes a value of the relation for granted
PREMISES = (
    ("book", "author", "published", "In which year did {p} publish {s}?"),
    ("company", "founder", "founded", "In which year did {p} found {s}?"),
    ("compound", "discoverer", "studied", "Where did {p} study before discovering {s}?"),
)


def comparison(world: World, key: Key) -> Question | None:
    """Which of two things is older, larger and so on; of equal ones nothing is asked."""
    of = world.chance.pick([one for one in RELATIONS if one.order], "compare", *key)
    a, b = (some(world, of.kind, side, *key) for side in ("a", "b"))
    first, second = world.value(a, of), world.value(b, of)
    if a == b or first is None or second is None or first == second:
        return None
    winner = a if (int(str(first)) > int(str(second))) == of.larger else b
    text = of.order.format(a=world.name(a), b=world.name(b))
    return from_facts(
        world, "comparison", text, world.name(winner), ((a, of, first), (b, of, second))
    )


def counting(world: World, key: Key) -> Question | None:
    """How many books somebody wrote; people without any are not asked for."""
    of = relation("book", "author")
    author = world.value(some(world, "book", *key), of)
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


def temporal(world: World, key: Key) -> Question | None:
    """What a fact that changed is today, or was in a year before it changed."""
    of = world.chance.pick([one for one in RELATIONS if one.temporal], "temporal", *key)
    subject = some(world, of.kind, *key)
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


def graph(world: World, key: Key) -> Question | None:
    """A fact that no passage tells, reached over none or one that passages do."""
    hidden = world.chance.pick(
        [o for o in RELATIONS if not o.statements and not o.temporal], "hidden", *key
    )
    before = [o for o in RELATIONS if o.target == hidden.kind and o.statements]
    names: tuple[str, ...] = (hidden.name,)
    start = some(world, hidden.kind, *key)
    if world.chance.share("deep", *key) < 0.5:
        first = world.chance.pick(before, "before", *key)
        start, names = some(world, first.kind, *key), (first.name, hidden.name)
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
        text=single if len(names) == 1 else nested(world, start, relations),
        things=tuple(things),
        answers=(world.name(values[-1]),),
        evidence=(),
        calls=(Call("graph", select(world.name(start), names)),),
        difficulty=1 + len(names),
    )


def chemistry(world: World, key: Key) -> Question | None:
    """A property of a structure that a passage gives."""
    compound = some(world, "compound", *key)
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


def false_premise(world: World, key: Key) -> Question | None:
    """A question about something that did not happen: the wrong author, the wrong founder."""
    thing, of, _, asks = world.chance.pick(PREMISES, "premise", *key)
    subject, person = some(world, thing, *key), some(world, "person", "wrong", *key)
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


def true_premise(world: World, key: Key) -> Question | None:
    """The same about what did happen: the words alone do not say that there is no answer."""
    thing, of, then, asks = world.chance.pick(PREMISES, "premise", *key)
    subject = some(world, thing, *key)
    person = world.value(subject, relation(thing, of))
    assert isinstance(person, Entity)
    about = person if then == "studied" else subject
    answer = world.value(about, relation(about.kind, then))
    if answer is None:
        return None
    text = asks.format(s=world.name(subject), p=world.name(person))
    facts = ((subject, relation(thing, of), person), (about, relation(about.kind, then), answer))
    return from_facts(world, "true_premise", text, world.name(answer), facts)


def unanswerable(world: World, key: Key) -> Question | None:
    """A fact that the world does not know about this thing, and does about others of its kind."""
    kind = world.chance.pick(
        [k for k in KINDS if any(o.missing for o in relations_of(k))], "un", *key
    )
    subject = some(world, kind, *key)
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


def _atoms(formula: str) -> dict[str, int]:
    """Atoms by symbol of a plain formula such as C8H10N4O2."""
    counts: dict[str, int] = {}
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    return counts
