"""The corpus of a world: what passages say, in varied wording, and what gets in the way.

Every thing has a main passage. By chance there are besides: a second passage that takes some of its
facts (`more`), a near-duplicate of the first in other words (`again`), an outdated one that
contradicts it (`old`), one about something else of the same name (`other`), and one that mentions it
and says nothing (`idle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eval.fictional.schema import Relation
from eval.fictional.world import Entity, World, told

_SHARES = {"again": 0.12, "old": 0.6, "other": 0.10, "idle": 0.12}
_SPLIT = 0.3
# what another thing of the same name could be taken to say: a year, and a place
_OTHER = (
    "{s} is also the name of a sailing ship that was built at {v} in {year}.",
    "An inn called {s} stood in {v} until {year}; it has nothing to do with others of the name.",
    "{s} was the title of a dance that was fashionable in {v} around {year}.",
)
_OTHER_YEARS, _IDLE_YEARS = (1750, 200), (2006, 20)
_IDLE = (
    "Many visitors ask about {s}, but the guide has little to say on the subject.",
    "A letter of {year} mentions {s} in passing and goes on to speak of the weather.",
    "The catalogue of {year} lists {s} without further remark.",
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of the corpus; `id` is the thing's id and, except for the main one, its role."""

    id: str
    title: str
    text: str

    def row(self) -> dict[str, str]:
        """As a line of a corpus file."""
        return {"id": self.id, "title": self.title, "text": self.text}


def passages(world: World) -> Iterator[Passage]:
    """The whole corpus, thing by thing."""
    for subject in world.entities():
        yield from passages_of(world, subject)


def passages_of(world: World, subject: Entity) -> Iterator[Passage]:
    """The passages about one thing, the main one first."""
    name = world.name(subject)
    first, second = _shared_out(world, subject)
    yield Passage(subject.id, name, _tell(world, subject, first, "main"))
    if second:
        yield Passage(f"{subject.id}/more", name, _tell(world, subject, second, "more"))
    for role, share in _SHARES.items():
        if role == "old":
            changed = [of for of in told(subject.kind) if of.temporal]
            if changed and _has(world, subject, role, share):
                yield Passage(f"{subject.id}/old", name, _outdated(world, subject, changed[0]))
        elif _has(world, subject, role, share):
            yield Passage(f"{subject.id}/{role}", name, _besides(world, subject, role, first))


def source_of(world: World, subject: Entity, of: Relation) -> str:
    """Id of the passage that tells a fact as it is now."""
    first, _ = _shared_out(world, subject)
    return subject.id if of in first else f"{subject.id}/more"


def former_source_of(world: World, subject: Entity) -> str | None:
    """Id of the outdated passage about a thing; None when there is none."""
    return f"{subject.id}/old" if _has(world, subject, "old", _SHARES["old"]) else None


def restated(ids: Iterable[str]) -> list[str]:
    """Where the near-duplicates of passages are, as far as the world has them."""
    return [f"{id}/again" for id in ids if id.count("/") == 1]


def _has(world: World, subject: Entity, role: str, share: float) -> bool:
    return world.chance.share("passage", subject.id, role) < share


def _shared_out(world: World, subject: Entity) -> tuple[list[Relation], list[Relation]]:
    """Facts of the main passage, in its order, and those of the second one."""
    known = [of for of in told(subject.kind) if world.value(subject, of) is not None]
    known = world.chance.shuffled(known, "order", subject.id)
    if len(known) > 2 and _has(world, subject, "more", _SPLIT):
        return known[:2], known[2:]
    return known, []


def _tell(world: World, subject: Entity, facts: list[Relation], role: str) -> str:
    return " ".join(_sentence(world, subject, of, role) for of in facts)


def _sentence(world: World, subject: Entity, of: Relation, role: str) -> str:
    change = world.change(subject, of)
    wordings = of.current if change else of.statements
    value = world.value(subject, of)
    assert value is not None
    text = world.chance.pick(wordings, "wording", subject.id, of.name, role)
    return _filled(world, text, subject, world.name(value), change.year if change else 0)


def _outdated(world: World, subject: Entity, of: Relation) -> str:
    """What was true before, with a date before the change."""
    change = world.change(subject, of)
    assert change is not None
    back = world.chance.below(min(20, change.year - change.start), "written", subject.id)
    written = change.year - 1 - back
    text = world.chance.pick(of.former, "wording", subject.id, of.name, "old")
    sentence = _filled(world, text, subject, world.name(change.before), change.year)
    return f"From a directory of {written}: {sentence}"


def _besides(world: World, subject: Entity, role: str, facts: list[Relation]) -> str:
    if role == "again":
        return _tell(world, subject, world.chance.shuffled(facts, "again", subject.id), role)
    text = world.chance.pick(_OTHER if role == "other" else _IDLE, role, subject.id)
    first, count = _OTHER_YEARS if role == "other" else _IDLE_YEARS
    year = first + world.chance.below(count, role, "year", subject.id)
    city = Entity("city", world.chance.below(world.counts["city"], role, "city", subject.id))
    return _filled(world, text, subject, world.name(city), year)


def _filled(world: World, text: str, subject: Entity, value: str, year: int) -> str:
    return text.format(s=world.name(subject), v=value, year=year)
