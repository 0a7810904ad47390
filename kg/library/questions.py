"""Questions about the library, generated from its facts: one and two hops, comparison, unanswerable.

The split is by what is asked about, so that no question of the test part asks of a chain of facts
that a training question walked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from kg.library.load import Element, Library, Molecule, Person, load_library
from kg.library.passages import slug

TEST_SHARE = 0.37


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        answers: accepted, best first; empty when the library does not hold it.
        kind: `one_hop`, `two_hop`, `comparison` or `unanswerable`.
        supporting: passage ids that hold the answer, or for an unanswerable question the thing's.
        split: `train` or `test`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str
    supporting: tuple[str, ...]
    split: str


def load_questions(split: str | None = None) -> list[Question]:
    """All questions, or those of one split, in a fixed order."""
    return [q for q in _all() if split is None or q.split == split]


@cache
def _all() -> tuple[Question, ...]:
    library = load_library()
    makers = (_elements, _molecules, _people, _two_hops, _comparisons, _unanswerable)
    return tuple(question for maker in makers for question in maker(library))


def _make(kind: str, key: str, text: str, answers: tuple[str, ...], *supporting: str) -> Question:
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    split = "test" if share < TEST_SHARE else "train"
    return Question(f"library-{digest}", text, answers, kind, supporting, split)


def _chosen(key: str, of: int) -> int:
    """A number below `of`, always the same for a key."""
    return hashlib.sha256(f"choice {key}".encode()).digest()[0] % of


def _elements(library: Library) -> Iterator[Question]:
    for element in library.elements[::2]:
        text, answer = _fact(element)
        yield _make("one_hop", element.name, text, (answer,), _id("element", element))
    for element in library.elements:
        alone = sum(e.namesake == element.namesake for e in library.elements) == 1
        if alone and element.namesake_kind in ("place", "sky", "myth"):
            yield _make(
                "one_hop",
                element.name + "name",
                f"Which element is named after {element.namesake}?",
                (element.name.lower(),),
                _id("element", element),
            )


def _fact(element: Element) -> tuple[str, str]:
    """The one-hop question about an element, and its answer."""
    options: list[tuple[str, str | None]] = [
        (f"What is the chemical symbol of {element.name.lower()}?", element.symbol),
        (f"What is the atomic number of {element.name.lower()}?", str(element.number)),
    ]
    if element.discovered:
        options += [
            (f"In which year was {element.name.lower()} discovered?", str(element.discovered)),
            (f"In which city or place was {element.name.lower()} discovered?", element.place),
        ]
    if len(element.discoverers) == 1:
        options.append((f"Who discovered {element.name.lower()}?", element.discoverers[0]))
    if element.namesake_kind in ("person", "place"):
        options.append((_namesake_question(element), element.namesake))
    text, answer = options[_chosen(element.name, len(options))]
    return text, str(answer)


def _namesake_question(element: Element) -> str:
    return f"After whom or what is {element.name.lower()} named?"


def _molecules(library: Library) -> Iterator[Question]:
    for molecule in library.molecules[::4]:
        options = [(f"What is the molecular formula of {molecule.name}?", molecule.formula)]
        if molecule.target:
            options.append((f"On which target does {molecule.name} act?", molecule.target))
        if molecule.discoverer:
            options.append((f"Who first made or isolated {molecule.name}?", molecule.discoverer))
        if molecule.discovered:
            options.append(
                (f"When was {molecule.name} first made or isolated?", str(molecule.discovered))
            )
        text, answer = options[_chosen(molecule.name, len(options))]
        yield _make("one_hop", molecule.name, text, (answer,), _id("molecule", molecule))


def _people(library: Library) -> Iterator[Question]:
    for person in library.people[::3]:
        options = [
            (f"Where was {person.name} born?", person.birthplace),
            (f"In which year was {person.name} born?", str(person.born)),
        ]
        if person.nobel:
            prize = person.nobel[0]
            options.append(
                (f"When did {person.name} win the Nobel Prize in {prize.field}?", str(prize.year))
            )
        text, answer = options[_chosen(person.name, len(options))]
        yield _make("one_hop", person.name, text, (answer,), _id("person", person))


def _two_hops(library: Library) -> Iterator[Question]:
    yield _make(
        "two_hop",
        "Mendelevium",
        "Which element is named after the creator of the periodic table?",
        ("mendelevium",),
        "element/mendelevium",
    )
    for element in library.elements:
        person = library.person(element.namesake)
        if person:
            yield from _named_after(library, element, person)
        if person and element.name != "Mendelevium":
            yield from _namesake(element, person)
        if len(element.discoverers) == 1:
            finder = library.person(element.discoverers[0])
            if finder and _chosen(element.name + "finder", 10) < 6:
                yield _through(
                    element,
                    finder,
                    f"Where was the discoverer of {element.name.lower()} born?",
                    finder.birthplace,
                )
        place = library.place(element.place) if element.place else None
        if place and _chosen(element.name + "place", 10) < 1:
            yield _make(
                "two_hop",
                element.name + place.name,
                f"In which country was {element.name.lower()} discovered?",
                (place.country,),
                _id("element", element),
            )
    for molecule in library.molecules:
        maker = library.person(molecule.discoverer) if molecule.discoverer else None
        if maker:
            yield _make(
                "two_hop",
                molecule.name + maker.name,
                f"In which year was the person born who first made or isolated {molecule.name}?",
                (str(maker.born),),
                _id("molecule", molecule),
                _id("person", maker),
            )


def _named_after(library: Library, element: Element, person: Person) -> Iterator[Question]:
    """The other way round: from the person, or what the person did, to the element."""
    asked = element in library.elements[::2] and _fact(element)[0] == _namesake_question(element)
    key = element.name if asked else element.name + person.name  # on the side of its inverse
    answer, source = (element.name.lower(),), _id("element", element)
    yield _make("one_hop", key, f"Which element is named after {person.name}?", answer, source)
    if element.name != "Mendelevium":
        text = f"Which element is named after the person known for {person.known_for}?"
        yield _make("two_hop", key, text, answer, source)


def _namesake(element: Element, person: Person) -> Iterator[Question]:
    yield _through(
        element,
        person,
        f"Where was the person born after whom {element.name.lower()} is named?",
        person.birthplace,
    )
    if person.nobel:
        prize = person.nobel[0]
        yield _through(
            element,
            person,
            f"In which year did the namesake of {element.name.lower()} win the Nobel Prize in "
            f"{prize.field}?",
            str(prize.year),
        )


def _through(element: Element, person: Person, text: str, answer: str) -> Question:
    key = element.name + person.name
    return _make("two_hop", key, text, (answer,), _id("element", element), _id("person", person))


def _comparisons(library: Library) -> Iterator[Question]:
    elements = library.elements
    for number in range(3, 90, 6):
        a, b = elements[number], elements[(number * 7 + 11) % 90]
        heavier = a if a.number > b.number else b
        yield _make(
            "comparison",
            a.name + b.name,
            f"Which has the higher atomic number, {a.name.lower()} or {b.name.lower()}?",
            (heavier.name,),
            _id("element", a),
            _id("element", b),
        )
    for number in range(2, 170, 17):
        first, second = library.molecules[number], library.molecules[(number * 3 + 40) % 170]
        heavy = first if first.mass > second.mass else second
        yield _make(
            "comparison",
            first.name + second.name,
            f"Which has the higher molar mass, {first.name} or {second.name}?",
            (heavy.name,),
            _id("molecule", first),
            _id("molecule", second),
        )


_MISSING_ELEMENT = (
    "What is the melting point of {}?",
    "What is the thermal conductivity of {}?",
    "How many stable isotopes does {} have?",
    "What is the price of one kilogram of {}?",
    "What is the density of {}?",
)
_MISSING_PERSON = (
    "Whom did {} marry?",
    "At which school was {} a pupil?",
    "What was the name of the mother of {}?",
)
_MISSING_MOLECULE = ("What is the boiling point of {}?", "What is the daily dose of {}?")


def _unanswerable(library: Library) -> Iterator[Question]:
    """Facts of a type that the library does not hold, about things that it does."""
    for number, element in enumerate(library.elements[1:100:4]):
        text = _MISSING_ELEMENT[number % len(_MISSING_ELEMENT)].format(element.name.lower())
        yield _make("unanswerable", element.name + "?", text, (), _id("element", element))
    for number, person in enumerate(library.people[1:80:4]):
        text = _MISSING_PERSON[number % len(_MISSING_PERSON)].format(person.name)
        yield _make("unanswerable", person.name + "?", text, (), _id("person", person))
    for number, molecule in enumerate(library.molecules[3:150:7]):
        text = _MISSING_MOLECULE[number % len(_MISSING_MOLECULE)].format(molecule.name)
        yield _make("unanswerable", molecule.name + "?", text, (), _id("molecule", molecule))


def _id(kind: str, fact: Element | Molecule | Person) -> str:
    return f"{kind}/{slug(fact.name)}"
