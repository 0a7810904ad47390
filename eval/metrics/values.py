"""Numbers and dates in free text. Pure functions."""

from __future__ import annotations

import math
import re

from eval.metrics.text import normalise

_SIGNS = str.maketrans("−–", "--")
# not within a word (C1, L-1) nor behind a point; what cannot be read (1,5 or 1.2.3) is one token too
_TOKEN = re.compile(
    r"(?<![\w.])(?<![^\W\d_][-−–])[-+−–]?\.?[0-9](?:[0-9.,]*[0-9])?(?:[eE][-+−–]?[0-9]+)?"
)
# around a number what makes another of it, or none: `minus 2`, `- 2`, `L^-1`, `0x10`
_MINUS = re.compile(r"(?i)\b(?:minus|negative)\s+$")
_DASH = re.compile(r"[-−–]\s+$|—\s*$")
_POWER = re.compile(r"\^[({]?$")
_MORE = re.compile(r"_|[^\W\d_]\d|\s?\^")
_LOOK_BACK = 16  # characters
_READABLE = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LARGEST = 1e100  # squares of errors stay finite
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(rf"(?i)(?<![\w-]){pattern}(?![\w-])")
    for pattern in (
        r"(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})",
        rf"{_DAY}\s(?:of\s)?{_MONTH},?\s(?P<year>[0-9]{{4}})",
        rf"{_MONTH}\s{_DAY},?\s(?P<year>[0-9]{{4}})",
    )
)
_APART = re.compile(r"(?<=\S)\s?\([^()]*\)\s*$")


def numbers_in(text: str) -> list[float]:
    """All numbers of a text in their order; NaN for one that cannot be read for certain (`1,5`, `- 2`,
    `10^3`).

    Digits within a word are none (`C1`, `L-1`, `L^-1`), the ends of a range are two (`2-3`).
    """
    found = (_in_context(match) for match in _TOKEN.finditer(text))
    return [value for value in found if value is not None]


def number_in(text: str) -> float | None:
    """The number of a text that holds exactly one, as in `about -2.5 log mol/L`; else None."""
    found = numbers_in(text)
    return found[0] if len(found) == 1 and math.isfinite(found[0]) else None


def number(text: str) -> float | None:
    """The number that the whole text is, or None."""
    return number_in(text) if _TOKEN.fullmatch(text.strip()) else None


def written(value: float) -> str:
    """A number in digits, up to 15 that count: `20`, `1.81`, `53394000000`."""
    return f"{value + 0.0:.15g}"  # no -0


def date_in_words(year: int, month: int, day: int) -> str:
    """A date as Wikipedia mostly writes it: `April 5, 1997`.

    Raises:
        ValueError: there is no such month or day.
    """
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        raise ValueError(f"there is no month {month} with a day {day}")
    return f"{_MONTHS[month - 1]} {day}, {year}"


def normalise_values(text: str) -> str:
    """SQuAD's, once dates and numbers are written in one way and what tells a name from its like
    (`Snatch (film)`) is dropped. The first of January is its year, as knowledge graphs write years."""
    for pattern in _DATES:
        text = pattern.sub(_in_words, text)
    return normalise(_APART.sub("", _TOKEN.sub(_plain, text)))


def _in_context(match: re.Match[str]) -> float | None:
    """The number that a token is where it stands; None for the power of a unit."""
    before = match.string[max(0, match.start() - _LOOK_BACK) : match.start()]
    if _POWER.search(before):
        return None
    if _MORE.match(match.string, match.end()) or _DASH.search(before):
        return math.nan
    value = _value(match[0])
    if not _MINUS.search(before):
        return value
    return -value if match[0][0].isdecimal() else math.nan


def _value(token: str) -> float:
    digits = token.translate(_SIGNS)
    if not _READABLE.fullmatch(digits):
        return math.nan
    value = float(digits.replace(",", ""))
    return value if abs(value) < _LARGEST else math.nan


def _in_words(match: re.Match[str]) -> str:
    month = match["month"]
    place = int(month) if month.isdigit() else _MONTHS.index(month.capitalize()) + 1
    year, day = int(match["year"]), int(match["day"])
    if place == day == 1:
        return str(year)
    try:
        return date_in_words(year, place, day)
    except ValueError:
        return match[0]


def _plain(match: re.Match[str]) -> str:
    """A number whose sign and point the normaliser keeps."""
    value = _value(match[0])
    if math.isnan(value):
        return match[0]
    return written(value).replace("-", "minus ").replace(".", "point")
