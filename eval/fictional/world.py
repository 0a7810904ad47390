"""What is true in a world: every fact is computed when it is asked for, and never stored."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from eval.fictional.chance import Chance, Permutation
from eval.fictional.names import Names
from eval.fictional.schema import KINDS, Relation, relation, relations_of
from kg.errors import UsageError
from kg.library.load import Molecule, load_library

MIN_ENTITIES = 40
_YEARS = {
    "born": (1780, 1990),
    "published": (1820, 2020),
    "founded": (1800, 2000),
    "opened": (1400, 1990),
}
_CHANGES = (1950, 2020)
_PROFESSIONS = ("chemist", "cartographer", "composer", "engineer", "botanist", "historian", "surgeon",
                "weaver", "astronomer", "printer", "geologist", "painter")  # fmt: skip
_PRODUCTS = ("looms", "telescopes", "bicycles", "lenses", "clocks", "pumps", "pianos", "turbines",
             "compasses", "engines", "bells", "microscopes")  # fmt: skip
# books of one author after another, over and over; who wrote one comes first, so that a world of a few
# authors has of each; most wrote one or two, and no number is that of more than two in five authors
_OEUVRES = (1, 3, 2, 1, 5, 2, 1, 2, 4, 1, 2, 3, 1)
_STARTS = (0, *accumulate(_OEUVRES))


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing: its kind and its number within the kind."""

    kind: str
    index: int

    @property
    def id(self) -> str:
        """`kind/number`, as in passage ids and the graph."""
        return f"{self.kind}/{self.index}"


Value = Entity | str


@dataclass(frozen=True, slots=True)
class Change:
    """What a fact that changed once was before, and the year from which the new value holds."""

    before: Value
    year: int


class World:
    """A closed world.

    Args:
        seed: of everything.
        entities: about how many things it holds.
        taught: share of facts that are marked to be taught to a policy.

    Raises:
        UsageError: too few entities for all kinds, or a share that is none.
    """

    def __init__(self, seed: int, entities: int, taught: float = 0.0) -> None:
        if entities < MIN_ENTITIES:
            raise UsageError(f"a world needs at least {MIN_ENTITIES} entities")
        if not 0 <= taught <= 1:
            raise UsageError(f"the share of taught facts is {taught}, not 0 to 1")
        self.seed = seed
        self.taught_share = taught
        self.chance = Chance(seed)
        self._molecules = _structures()
        self.counts = {kind: max(3, round(share * entities)) for kind, share in KINDS.items()}
        self.counts["compound"] = min(self.counts["compound"], len(self._molecules))
        self._names = Names(self.chance)
        self._authors = Permutation(self.chance, self.counts["book"], "authors")
        self._writers = Permutation(self.chance, self.counts["person"], "writers")
        self._countries = Permutation(self.chance, self.counts["city"], "countries")
        self._formulas = Permutation(self.chance, len(self._molecules), "structures")

    def entities(self, kind: str | None = None) -> Iterator[Entity]:
        """Every thing, kind by kind."""
        for one, count in self.counts.items():
            if kind in (None, one):
                yield from (Entity(one, index) for index in range(count))

    def name(self, value: Value) -> str:
        """A thing's name; a literal is its own."""
        return self._names(value.kind, value.index) if isinstance(value, Entity) else value

    def value(self, subject: Entity, of: Relation) -> Value | None:
        """What is true now; None when nothing is known."""
        if of.missing and self.chance.share("missing", subject.id, of.name) < of.missing:
            return None
        return self._value(subject, of)

    def change(self, subject: Entity, of: Relation) -> Change | None:
        """How a temporal fact changed; None for others."""
        if not of.temporal:
            return None
        low, high = _CHANGES
        year = low + self.chance.below(high - low, "changed", subject.id, of.name)
        return Change(self._other(subject, of), year)

    def taught(self, subject: Entity, of: Relation) -> bool:
        """Whether the fact is one of those to be taught; one that changes, or that no passage tells,
        never is."""
        chosen = self.chance.share("taught", subject.id, of.name) < self.taught_share
        return bool(of.statements) and chosen

    def books_of(self, person: Entity) -> list[Entity]:
        """The books that a person wrote, by the inverse of `author`."""
        lap, place = divmod(self._writers.inverse(person.index), len(_OEUVRES))
        start, stop = (lap * _STARTS[-1] + _STARTS[place + n] for n in (0, 1))
        images = range(start, min(stop, self.counts["book"]))
        return [Entity("book", self._authors.inverse(image)) for image in images]

    def _author(self, book: int) -> int:
        lap, place = divmod(self._authors(book), _STARTS[-1])
        return self._writers(lap * len(_OEUVRES) + bisect(_STARTS, place) - 1)

    def molecule(self, compound: Entity) -> Molecule:
        """The real molecule behind an invented name."""
        return self._molecules[self._formulas(compound.index)]

    def _value(self, subject: Entity, of: Relation) -> Value:
        if of.name == "author":
            return Entity("person", self._author(subject.index))
        if of.name == "country":
            return Entity("country", self._countries(subject.index) % self.counts["country"])
        if of.name == "capital":  # a city that lies in the country
            return Entity("city", self._countries.inverse(subject.index))
        if of.name == "structure":
            return self.molecule(subject).smiles
        if of.target in ("year", "number", "word"):
            return self._literal(subject, of)
        return self._target(subject, of, "now")

    def _literal(self, subject: Entity, of: Relation) -> str:
        key = (subject.id, of.name)
        if of.target == "year":
            low, high = _YEARS[of.name]
            return str(low + self.chance.below(high - low, *key))
        if of.name == "inhabitants":
            return str(5_000 + self.chance.below(900_000, *key))
        if of.name == "length":
            return str(40 + self.chance.below(2_400, *key))
        if of.name == "profession":
            return self.chance.pick(_PROFESSIONS, *key)
        if of.name == "product":
            return self.chance.pick(_PRODUCTS, *key)
        return self._names(of.name, subject.index)

    def _target(self, subject: Entity, of: Relation, when: str) -> Entity:
        """Another thing of the target's kind, never the subject itself."""
        count = self.counts[of.target]
        same = of.target == subject.kind
        found = self.chance.below(count - same, when, subject.id, of.name)
        return Entity(of.target, found + (same and found >= subject.index))

    def _other(self, subject: Entity, of: Relation) -> Entity:
        """What a temporal fact was before: another value than now."""
        now, before = self._target(subject, of, "now"), self._target(subject, of, "before")
        if before == now:
            return Entity(of.target, (now.index + 1) % self.counts[of.target])
        return before


def path(world: World, start: Entity, names: tuple[str, ...]) -> list[Value] | None:
    """The values along a chain of relations; None where nothing is known."""
    values: list[Value] = []
    at: Value = start
    for name in names:
        if not isinstance(at, Entity):
            return None
        found = world.value(at, relation(at.kind, name))
        if found is None:
            return None
        values.append(found)
        at = found
    return values


def told(kind: str) -> tuple[Relation, ...]:
    """Relations of a kind that passages tell."""
    return tuple(one for one in relations_of(kind) if one.statements or one.temporal)


@lru_cache
def _structures() -> tuple[Molecule, ...]:
    """Molecules of the bundled library; each structure once."""
    return tuple({one.smiles: one for one in load_library().molecules}.values())
