"""Kinds of things and what is said of them.

A relation is one row: what it links, how passages word it, and how questions ask for it. Everything
else (passages, graph, questions of any number of hops) follows from this table.
"""

from __future__ import annotations

from dataclasses import dataclass

# share of a world's entities; compounds are limited by the structures that there are
KINDS = {
    "person": 0.40,
    "book": 0.17,
    "company": 0.15,
    "city": 0.15,
    "university": 0.05,
    "river": 0.03,
    "country": 0.02,
    "compound": 0.03,
}
LITERALS = ("year", "number", "word", "smiles")


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        name: within its kind, and in the graph.
        kind: of the subject.
        target: kind of the value, or one of `LITERALS`.
        noun: the value as a phrase about the subject, for questions of several hops.
        question: for it alone.
        statements: wordings of passages, {s} for the subject and {v} for the value; none: the fact is
            in the graph alone.
        missing: share of subjects for which nothing is known.
        order: question for comparisons, with {a} and {b}; the smaller value wins unless `larger`.
        former: wording of what was true before {year}; a fact with one changes once.
        current: wording of what has been true since {year}.
    """

    name: str
    kind: str
    target: str
    noun: str
    question: str
    statements: tuple[str, ...] = ()
    missing: float = 0.0
    order: str = ""
    larger: bool = False
    former: tuple[str, ...] = ()
    current: tuple[str, ...] = ()

    @property
    def literal(self) -> bool:
        """Whether the value is not an entity."""
        return self.target in LITERALS

    @property
    def temporal(self) -> bool:
        """Whether the value changed once."""
        return bool(self.former)


RELATIONS = (
    Relation(
        "birthplace", "person", "city", "the birthplace of {s}", "Where was {s} born?",
        ("{s} was born in {v}.", "{v} is the birthplace of {s}.", "{s} is a native of {v}."),
    ),
    Relation(
        "born", "person", "year", "the year of birth of {s}", "In which year was {s} born?",
        ("{s} was born in the year {v}.", "The birth of {s} is recorded for {v}."),
        missing=0.15, order="Who was born earlier, {a} or {b}?",
    ),
    Relation(
        "studied", "person", "university", "the place of study of {s}", "Where did {s} study?",
        ("{s} studied at {v}.", "{v} counts {s} among its former students."), missing=0.15,
    ),
    Relation(
        "profession", "person", "word", "the profession of {s}", "What is the profession of {s}?",
        ("{s} worked as a {v}.", "By profession, {s} was a {v}."),
    ),
    Relation("mentor", "person", "person", "the mentor of {s}", "Who was the mentor of {s}?"),
    Relation(
        "author", "book", "person", "the author of {s}", "Who wrote {s}?",
        ("{s} is a book by {v}.", "{v} wrote {s}.", "The book {s} was written by {v}."),
    ),
    Relation(
        "published", "book", "year", "the year of publication of {s}", "When was {s} published?",
        ("{s} was published in {v}.", "Its first edition appeared in {v}."),
        missing=0.1, order="Which was published earlier, {a} or {b}?",
    ),
    Relation(
        "founder", "company", "person", "the founder of {s}", "Who founded {s}?",
        ("{s} was founded by {v}.", "{v} is the founder of {s}."),
    ),
    Relation(
        "founded", "company", "year", "the founding year of {s}", "When was {s} founded?",
        ("{s} was founded in {v}.", "The firm {s} dates from {v}."),
        missing=0.1, order="Which was founded earlier, {a} or {b}?",
    ),
    Relation(
        "seat", "company", "city", "the home city of {s}", "In which city is {s} based?",
        former=("{s} is based in {v}.", "The head office of {s} is in {v}."),
        current=("Since {year}, {s} has been based in {v}.", "In {year}, {s} moved to {v}."),
    ),
    Relation(
        "product", "company", "word", "the product of {s}", "What does {s} make?",
        ("{s} makes {v}.", "The firm {s} is known for its {v}."),
    ),
    Relation(
        "country", "city", "country", "the country of {s}", "In which country is {s}?",
        ("{s} is a city in {v}.", "{s} lies in {v}."),
    ),
    Relation(
        "inhabitants", "city", "number", "the number of inhabitants of {s}",
        "How many inhabitants does {s} have?",
        ("{s} has {v} inhabitants.", "The city of {s} is home to {v} people."),
        missing=0.1, order="Which has more inhabitants, {a} or {b}?", larger=True,
    ),
    Relation(
        "mayor", "city", "person", "the mayor of {s}", "Who is the mayor of {s}?",
        former=("The mayor of {s} is {v}.", "{v} is mayor of {s}."),
        current=("Since {year}, {v} has been mayor of {s}.", "{v} became mayor of {s} in {year}."),
    ),
    Relation("twin", "city", "city", "the twin city of {s}", "Which city is the twin of {s}?"),
    Relation(
        "located", "university", "city", "the city of {s}", "In which city is {s}?",
        ("{s} is in {v}.", "The campus of {s} lies in {v}."),
    ),
    Relation(
        "opened", "university", "year", "the opening year of {s}", "When did {s} open?",
        ("{s} opened in {v}.", "The first students entered {s} in {v}."),
        missing=0.1, order="Which opened earlier, {a} or {b}?",
    ),
    Relation(
        "mouth", "river", "city", "the city at the mouth of the {s}", "At which city does the {s} end?",
        ("The {s} reaches the sea at {v}.", "{v} stands at the mouth of the {s}."),
    ),
    Relation(
        "length", "river", "number", "the length in kilometres of the {s}",
        "How many kilometres long is the {s}?",
        ("The {s} is {v} kilometres long.", "The {s} runs for {v} kilometres."),
        order="Which is longer, the {a} or the {b}?", larger=True,
    ),
    Relation(
        "capital", "country", "city", "the capital of {s}", "What is the capital of {s}?",
        ("The capital of {s} is {v}.", "{s} is governed from its capital, {v}."),
    ),
    Relation(
        "language", "country", "word", "the language of {s}", "Which language is spoken in {s}?",
        ("The people of {s} speak {v}.", "{v} is the language of {s}."),
    ),
    Relation(
        "currency", "country", "word", "the currency of {s}", "What is the currency of {s}?",
        ("{s} pays with the {v}.", "The currency of {s} is the {v}."),
    ),
    Relation(
        "discoverer", "compound", "person", "the discoverer of {s}", "Who discovered {s}?",
        ("{s} was discovered by {v}.", "{v} first isolated {s}."),
    ),
    Relation(
        "structure", "compound", "smiles", "the structure of {s}", "What is the SMILES of {s}?",
        ("The structure of {s} is written {v} in SMILES.", "Chemists write {s} as {v} (SMILES)."),
    ),
)  # fmt: skip


def relations_of(kind: str) -> tuple[Relation, ...]:
    """All relations of a kind, in table order."""
    return _BY_KIND[kind]


def relation(kind: str, name: str) -> Relation:
    """One relation."""
    return next(one for one in _BY_KIND[kind] if one.name == name)


_BY_KIND = {kind: tuple(one for one in RELATIONS if one.kind == kind) for kind in KINDS}
