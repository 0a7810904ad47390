"""Randomness without state: every value is a function of the seed and a key.

So any fact of a world can be computed alone, in any order, on any machine, with the same result; a
world of a million passages needs no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_ROUNDS = 4


class Chance:
    """Values by key.

    Args:
        seed: two chances of one seed give the same values.
    """

    def __init__(self, seed: int) -> None:
        self._key = blake2b(str(seed).encode(), digest_size=16).digest()

    def bits(self, *key: object) -> int:
        """64 random bits."""
        text = "\x1f".join(map(str, key)).encode()
        return int.from_bytes(blake2b(text, digest_size=8, key=self._key).digest(), "big")

    def below(self, n: int, *key: object) -> int:
        """0 to n - 1."""
        return self.bits(*key) * n >> 64

    def share(self, *key: object) -> float:
        """0 up to 1."""
        return self.bits(*key) / 2**64

    def pick(self, options: Sequence[T], *key: object) -> T:
        """One of the options."""
        return options[self.below(len(options), *key)]

    def shuffled(self, items: Sequence[T], *key: object) -> list[T]:
        """The items in a random order."""
        return [
            item
            for _, _, item in sorted(
                ((self.bits(place, *key), place, item) for place, item in enumerate(items)),
                key=lambda entry: entry[:2],
            )
        ]


class Permutation:
    """A random bijection of 0 … n - 1 with its inverse, in constant memory (a Feistel network).

    Args:
        chance: gives the seed.
        n: size.
        key: another key gives another permutation.
    """

    def __init__(self, chance: Chance, n: int, *key: object) -> None:
        self.n = n
        self._chance = chance
        self._key = key
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1

    def __call__(self, index: int) -> int:
        """Where `index` goes."""
        return self._walk(index, range(_ROUNDS), forward=True)

    def inverse(self, image: int) -> int:
        """What goes to `image`."""
        return self._walk(image, range(_ROUNDS - 1, -1, -1), forward=False)

    def _walk(self, value: int, rounds: range, forward: bool) -> int:
        """Through the network until the value is below n again: that keeps it a bijection."""
        while True:
            left, right = value >> self._half, value & self._mask
            for number in rounds:
                if forward:
                    left, right = right, left ^ self._mix(number, right)
                else:
                    left, right = right ^ self._mix(number, left), left
            value = left << self._half | right
            if value < self.n:
                return value

    def _mix(self, number: int, half: int) -> int:
        return self._chance.bits("feistel", *self._key, number, half) & self._mask
