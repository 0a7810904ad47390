"""Which things training questions may be about, and which test questions.

A thing goes where its home city goes, a book with its author, a company with its founder: so most
chains of several hops begin and end on one side, and no kind of question runs out. Countries are few,
and every other chain ends in one: they are shared out apart, half and half.
"""

from __future__ import annotations

from collections.abc import Iterable

from eval.fictional.chance import Permutation
from eval.fictional.schema import relation
from eval.fictional.world import Entity, World

_HOMES = {
    "person": "birthplace",
    "book": "author",
    "company": "founder",
    "university": "located",
    "river": "mouth",
    "compound": "discoverer",
}
TEST_SHARE = 0.3
_SHARES = {"city": TEST_SHARE, "country": 0.5}


def split_of(world: World, things: Iterable[Entity]) -> str | None:
    """`train` or `test`, where all things are of one split; None where they are not.

    Questions are made of things of one split alone, so that nothing a training question needs to know
    is needed by a test question of the same world.
    """
    found = {_side(world, thing) for thing in things}
    return found.pop() if len(found) == 1 else None


def _side(world: World, thing: Entity) -> str:
    while thing.kind in _HOMES:
        home = world.value(thing, relation(thing.kind, _HOMES[thing.kind]))
        assert isinstance(home, Entity)  # homes are never unknown
        thing = home
    count = world.counts[thing.kind]
    place = Permutation(world.chance, count, "split", thing.kind)(thing.index)
    return "test" if place < round(_SHARES[thing.kind] * count) else "train"
