"""The library's facts, typed and checked against each other."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict

from kg.errors import UsageError


class Fact(BaseModel):
    """A thing the library knows; `name` is unique within its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class Element(Fact):
    """A chemical element.

    Attributes:
        mass: standard atomic mass (g/mol), or the mass number of the longest-lived isotope.
        group: column of the periodic table; None in the f-block.
        discovered: year; None when known since antiquity.
        namesake_kind: `person`, `place`, `sky`, `myth`, `mineral` or `word`.
    """

    symbol: str
    number: int
    mass: float
    group: int | None
    period: int
    category: str
    state: str
    discovered: int | None
    discoverers: tuple[str, ...]
    place: str | None
    namesake: str
    namesake_kind: str
    use: str


class Molecule(Fact):
    """A well-known molecule; `mass` in g/mol, `formula` in Hill order."""

    smiles: str
    formula: str
    mass: float
    kind: str
    use: str
    target: str | None
    discoverer: str | None
    discovered: int | None


class Prize(BaseModel):
    """A Nobel Prize."""

    model_config = ConfigDict(frozen=True)

    year: int
    field: str


class Person(Fact):
    """A scientist."""

    born: int
    died: int | None
    birthplace: str
    nationality: str
    known_for: str
    nobel: tuple[Prize, ...]


class Place(Fact):
    """A place that the other facts mention."""

    country: str
    about: str


class Library(BaseModel):
    """All facts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: tuple[Element, ...]
    molecules: tuple[Molecule, ...]
    people: tuple[Person, ...]
    places: tuple[Place, ...]

    def person(self, name: str) -> Person | None:
        """The person of that name, if the library knows one."""
        return next((person for person in self.people if person.name == name), None)

    def place(self, name: str) -> Place | None:
        """The place of that name, if the library knows one."""
        return next((place for place in self.places if place.name == name), None)


@cache
def load_library() -> Library:
    """The bundled library.

    Raises:
        UsageError: the file names a thing twice, or a namesake or place that it does not hold.
    """
    text = resources.files("kg.library").joinpath("science.yaml").read_text("utf-8")
    library = Library.model_validate(yaml.safe_load(text))
    _check(library)
    return library


def _check(library: Library) -> None:
    for facts in (library.elements, library.molecules, library.people, library.places):
        names = [fact.name for fact in facts]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UsageError(f"the library holds {sorted(twice)} twice")
    for element in library.elements:
        if element.namesake_kind == "person" and library.person(element.namesake) is None:
            raise UsageError(f"{element.name} is named after {element.namesake}, who is not there")
        if element.place and library.place(element.place) is None:
            raise UsageError(f"{element.name} was found at {element.place}, which is not there")
