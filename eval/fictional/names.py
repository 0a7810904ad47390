"""Invented names: unique within a kind, pronounceable, and in no dictionary.

Words are made of syllables that begin with consonants and end in a vowel, so that two rows of syllables
never spell the same word.
"""

from __future__ import annotations

from eval.fictional.chance import Chance, Permutation

_ONSETS = (
    *("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"),
    *("br", "dr", "fl", "gr", "kl", "pr", "sk", "tr", "vr", "zh"),
)
_VOWELS = ("a", "e", "i", "o", "u")
_SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
_BASE = len(_SYLLABLES)
_CODAS = ("", "n", "l", "r", "s", "th", "x", "m")
_SUFFIXES = {
    "country": ("ria", "ndor", "lund", "vania"),
    "company": (" Works", " Foundry", " Line", " Mills", " Instruments"),
    "university": (" University", " Academy", " Institute"),
    "river": (" River",),
    "compound": ("xine", "tol", "drate", "ximab", "phen"),
    "language": ("nish", "lese", "vic"),
    "currency": (" crown", " mark", " dram"),
}
_SUBJECTS = (
    *("Lantern", "Orchard", "Winter", "Harbour", "Clock", "Bridge", "Garden", "Letter", "Mirror"),
    *("Staircase", "Lighthouse", "Voyage", "Silence", "Atlas", "Furnace", "Meadow", "Archive"),
)


class Names:
    """Names of a world by kind and index.

    Args:
        chance: of the world.
    """

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._orders: dict[str, Permutation] = {}

    def __call__(self, kind: str, index: int) -> str:
        """The name of entity `index` of a kind; no two of a kind are equal."""
        if kind == "person":
            number = self._order(kind, _BASE**5 * len(_CODAS))(index)
            number, coda = divmod(number, len(_CODAS))
            family, given = divmod(number, _BASE**2)
            return f"{_word(given, 2).title()} {(_word(family, 3) + _CODAS[coda]).title()}"
        if kind == "book":
            number = self._order(kind, _BASE**3 * len(_SUBJECTS))(index)
            number, subject = divmod(number, len(_SUBJECTS))
            return f"The {_SUBJECTS[subject]} of {_word(number, 3).title()}"
        suffixes = _SUFFIXES.get(kind, _CODAS)
        number = self._order(kind, _BASE**3 * len(suffixes))(index)
        number, suffix = divmod(number, len(suffixes))
        return f"{_word(number, 3).capitalize()}{suffixes[suffix]}"

    def _order(self, kind: str, size: int) -> Permutation:
        if kind not in self._orders:
            self._orders[kind] = Permutation(self._chance, size, "names", kind)
        return self._orders[kind]


def _word(number: int, syllables: int) -> str:
    """Digits in base 120 as syllables; always that many, so that the spelling is unique."""
    parts = []
    for _ in range(syllables):
        number, digit = divmod(number, _BASE)
        parts.append(_SYLLABLES[digit])
    return "".join(parts)
