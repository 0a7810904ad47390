"""The questions about a world.

A question is made from its number alone: the kind, the split and what it is about follow from chance,
tried again under the next key where the world does not know enough, or where the things whose facts it
needs are of different splits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eval.fictional import kinds
from eval.fictional.chains import Maker, hops
from eval.fictional.question import Question
from eval.fictional.split import TEST_SHARE, split_of
from eval.fictional.world import World

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
_MAKERS: dict[str, Maker] = {
    **{f"{length}hop": hops(length) for length in range(1, 5)},
    "comparison": kinds.comparison,
    "counting": kinds.counting,
    "temporal": kinds.temporal,
    "graph": kinds.graph,
    "chemistry": kinds.chemistry,
    "false_premise": kinds.false_premise,
    "true_premise": kinds.true_premise,
    "unanswerable": kinds.unanswerable,
}


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


def _kind(world: World, number: int) -> str:
    point = world.chance.share("kind", number)
    for kind, share in SHARES.items():
        point -= share
        if point < 0:
            return kind
    return "1hop"
