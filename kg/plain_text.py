"""Text from documents and models, made harmless for a terminal."""

from __future__ import annotations

_KEPT = "\n\t"
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # make text read in another order
_CONTROLS = {
    code: "\ufffd"
    for code in (*range(0x20), *range(0x7F, 0xA0), *_TURNING)
    if chr(code) not in _KEPT
}


def printable(text: str) -> str:
    """`text` without control characters (those of escape sequences and of the order of reading among
    them), line ends and tabs kept."""
    return text.translate(_CONTROLS)
