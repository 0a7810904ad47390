"""Text from documents and models, made harmless for a terminal."""

from __future__ import annotations

_KEPT = "\n\t"
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _KEPT
}


def printable(text: str) -> str:
    """`text` without control characters (escape sequences among them), line ends and tabs kept."""
    return text.translate(_CONTROLS)
