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
# years follow one another: whoever studies finds the university open, whoever writes, founds or governs
# is grown up, a firm moves after its founding; by `_NOW` everything is there that passages mention
_OPENED = (1300, 1720)
_BORN, _LIVING, _NOW = 1700, 1940, 2006  # who holds an office today was born in _LIVING or later
_YOUNGEST = 1980
_LIVING_SHARE = 0.3
_ADULT, _MAYOR = 20, 25  # age at which somebody first publishes or founds, or takes office
_ACTIVE = 50
_CHANGES = (1950, 2021)
#: Years for which what was before a change is certain, at least.
STEADY = 6
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
    """What a fact that changed once was before.

    Attributes:
        before: the earlier value.
        year: from which the new value holds.
        start: a year in which the earlier value held already, `STEADY` or more before `year`.
    """

    before: Value
    year: int
    start: int


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
        self._people = Permutation(self.chance, self.counts["person"], "people")
        self._twins = Permutation(self.chance, self.counts["city"], "twins")
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
        before, now = self._other(subject, of), self._target(subject, of, "now")
        low, high = _CHANGES
        if of.target == "person":  # an office
            start = self._born(before) + _MAYOR
            low = max(low, self._born(now) + _MAYOR)
        else:
            start = self._begun(subject)
        low = max(low, start + STEADY)
        year = low + self.chance.below(high - low, "changed", subject.id, of.name)
        return Change(before, year, start)

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

    def _value(self, subject: Entity, of: Relation) -> Value | None:
        if of.name == "author":
            return Entity("person", self._author(subject.index))
        if of.name == "country":
            return Entity("country", self._countries(subject.index) % self.counts["country"])
        if of.name == "capital":  # a city that lies in the country
            return Entity("city", self._countries.inverse(subject.index))
        if of.name == "twin":  # each the other's; the last of an odd number has none
            image = self._twins(subject.index) ^ 1
            known = image < self.counts["city"]
            return Entity("city", self._twins.inverse(image)) if known else None
        if of.name == "structure":
            return self.molecule(subject).smiles
        if of.target in ("year", "number", "word"):
            return self._literal(subject, of)
        return self._target(subject, of, "now")

    def _literal(self, subject: Entity, of: Relation) -> str:
        key = (subject.id, of.name)
        if of.target == "year":
            return str(self._year(subject, of.name))
        if of.name == "inhabitants":
            return str(5_000 + self.chance.below(900_000, *key))
        if of.name == "length":
            return str(40 + self.chance.below(2_400, *key))
        if of.name == "profession":
            return self.chance.pick(_PROFESSIONS, *key)
        if of.name == "product":
            return self.chance.pick(_PRODUCTS, *key)
        return self._names(of.name, subject.index)

    def _year(self, subject: Entity, name: str) -> int:
        if name == "born":
            return self._born(subject)
        if name == "opened":
            low, high = _OPENED
            return low + self.chance.below(high - low, subject.id, name)
        return self._begun(subject)

    def _begun(self, work: Entity) -> int:
        """The year in which a book was published or a company founded, in its author's or founder's
        active years."""
        name = "published" if work.kind == "book" else "founded"
        by = relation(work.kind, "author" if work.kind == "book" else "founder")
        person = self._value(work, by)
        assert isinstance(person, Entity)
        low = self._born(person) + _ADULT
        return low + self.chance.below(min(_ACTIVE, _NOW - low), work.id, name)

    def _born(self, person: Entity) -> int:
        living = self._people(person.index) < self._living
        low, high = (_LIVING, _YOUNGEST) if living else (_BORN, _LIVING)
        return low + self.chance.below(high - low, person.id, "born")

    @property
    def _living(self) -> int:
        """How many people can hold an office today."""
        return max(2, round(_LIVING_SHARE * self.counts["person"]))

    def _target(self, subject: Entity, of: Relation, when: str) -> Entity:
        """Another thing of the target's kind, never the subject itself; of people who hold an office one
        who lives."""
        if of.temporal and of.target == "person":
            found = self.chance.below(self._living, when, subject.id, of.name)
            return Entity("person", self._people.inverse(found))
        count = self.counts[of.target]
        same = of.target == subject.kind
        found = self.chance.below(count - same, when, subject.id, of.name)
        return Entity(of.target, found + (same and found >= subject.index))

    def _other(self, subject: Entity, of: Relation) -> Entity:
        """What a temporal fact was before: another value than now."""
        now, before = self._target(subject, of, "now"), self._target(subject, of, "before")
        if before != now:
            return before
        if of.target == "person":
            return Entity(
                "person", self._people.inverse((self._people(now.index) + 1) % self._living)
            )
        return Entity(of.target, (now.index + 1) % self.counts[of.target])


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
