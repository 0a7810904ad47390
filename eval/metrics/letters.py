"""Which letters a reply states as its choice. Pure.

Each pattern asks for what stands around a letter: "A fracture" is no answer A, and "if B is correct"
states nothing.
"""

from __future__ import annotations

import re

# What stands behind a letter that names a choice. A space alone does not: "A fracture" is no answer A,
# and neither is the genus of "E. coli", whose next word is not capitalised.
_END = (
    r"""(?:\s*$|\s*[)\]:*}]|["'”’](?!\w)|\.(?:\s*$|\s+[^a-z\s])|\s*\n|\s+[-–—]\s|"""
    r"""\s*,(?!\s*[A-Za-z](?!\w))|\s+(?:because|since|as)\b)"""
)
# "B or C", "(B), (C)": the next letter is one of the same list
_ALONE = (
    r"(?![)\]* ]{0,4}(?:[,/&]|(?:or|and)\b)[ (\[*]{0,4}(?:(?:or|and)[ (\[*]{1,3})?"
    r"(?:(?:option|choice)\W{1,3})?[A-HJ-Z](?![\w'’]))"
)
_LETTER = rf"(?:([A-Za-z]){_END}|([B-HJ-Z])(?![\w.'’])){_ALONE}"
_RIGHT = r"(?:the\s+)?(?:most\s+)?(?:correct|right|true|best)(?:\s+(?:answer|option|choice|one))?"

_LEADING = re.compile(rf"\W*(?:(?i:option|answer|choice)\W+)?([A-Za-z]){_END}{_ALONE}")
_STATED = (
    # the answer is B; choice: B
    re.compile(
        r"(?<!(?i:wrong) )(?<!(?i:incorrect) )(?i:\b(?:answer|option|choice))"
        rf"(?i:\s+(?:is|would\s+be)\b|\s*:)\W*(?i:(?:option|choice)\W+)?{_LETTER}"
    ),
    # I choose B
    re.compile(
        r"(?i:\bI(?:\s+would|['’]d)?\s+(?:choose|pick|select|go\s+with)\s+(?:(?:option|choice)\s+)?)\W{0,3}"
        rf"{_LETTER}"
    ),
    # B is correct; so option B is the best answer
    re.compile(
        r"(?:^|[.;:!?\n]\s{0,3}|(?i:\b(?:so|thus|hence|therefore),?\s{1,3}))(?i:i\s+(?:think|believe)\s+"
        r"(?:that\s+)?)?(?i:(?:the\s+)?(?:option|choice|answer)\s+)?\W{0,3}(?<!\w)([A-Za-z])\W{0,3}\s"
        rf"(?i:(?:is|would\s+be|must\s+be)\s+{_RIGHT}|is\s+the\s+answer)"
        r"(?=\s*(?:$|[.,;:!)\n*]|(?:because|since|as|for|here)\b))"
    ),
    re.compile(r"\\boxed\{\s*(?:\\\w+\{)?\W{0,3}([A-Za-z])\W{0,3}\}"),
)
_BEHIND = re.compile(r"\s*[(\[]([A-Za-z])[)\]]\W{0,3}$")


def stated(text: str) -> set[str]:
    """Capital letters that a text gives as its choice, at its beginning or in so many words."""
    leading = _LEADING.match(text)
    found = {leading[1].upper()} if leading else set()
    for pattern in _STATED:
        found |= {next(filter(None, match.groups())).upper() for match in pattern.finditer(text)}
    return found


def behind(text: str) -> tuple[str, str] | None:
    """What stands before a letter in brackets at the end, and the capital letter: `Ibuprofen (B)`."""
    match = _BEHIND.search(text)
    return (text[: match.start()], match[1].upper()) if match else None
