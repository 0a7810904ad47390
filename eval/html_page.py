"""A self-contained HTML page: nothing is loaded, nothing runs, every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{display:inline-block;margin:.4rem}svg{max-width:100%;height:auto}.bad{color:#a33}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td,th{border-color:#444}
svg{background:#fff}}
"""


def page(title: str, body: str, style: str = "") -> str:
    """A page under a policy that forbids every connection and every script.

    Args:
        title: plain text.
        body: HTML.
        style: CSS after the page's own.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body>{body}</body></html>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; those that begin with a digit stand to the right, but for the first."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = (
        "".join(
            f"<td>{escape(cell)}</td>" if not place else _cell(cell)
            for place, cell in enumerate(row)
        )
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(text: str) -> str:
    kind = ' class="n"' if text[:1].isdigit() else ""
    return f"<td{kind}>{escape(text)}</td>"
