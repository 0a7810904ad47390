"""Receipts for the terminal: aligned columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kg.plain_text import printable
from rl.credit import TermReceipt
from rl.receipt import PartLine, Receipt, TurnLine

_ACTION_CHARS = 28
_ANSWER_CHARS = 40
_NOISE = 1e-12  # of rounding: shown as 0


@dataclass(frozen=True)
class _Column:
    """A column of numbers (or words); None is an empty cell.

    Attributes:
        total: what stands in the last line.
        signed: whether numbers show a plus.
    """

    title: str
    cells: Sequence[float | int | str | None]
    total: float | int | str | None = None
    signed: bool = True


def render_receipt(receipt: Receipt) -> str:
    """The receipt as text: the turns, the information gain, the rollouts, what was left out."""
    blocks = [_head(receipt), _table(_turn_columns(receipt))]
    if any(line.gold is not None for line in receipt.turns):
        blocks.append(_gain(receipt))
    blocks.append(_rollouts(receipt))
    said = [f"left out: {drop.id}: {drop.reason}" for drop in receipt.dropped]
    said += [f"note: {note}" for note in receipt.notes]
    return printable("\n\n".join([*blocks, *(["\n".join(said)] if said else [])]))


def _head(receipt: Receipt) -> str:
    parts = ", ".join(_part(part) for part in receipt.parts)
    options = "".join(f" {name}={value}" for name, value in receipt.options.items())
    constant = f" {receipt.constant:g}" if receipt.aggregation == "constant" else ""
    return "\n".join(
        [
            f"episode  {receipt.id}",
            f"policy   {receipt.policy}",
            f"recipe   {receipt.recipe} ({receipt.digest})",
            f"rewards  {parts}",
            f"credit   {receipt.estimator}{options}",
            f"loss     {receipt.aggregation}{constant}",
        ]
    )


def _part(part: PartLine) -> str:
    """`gain = 0.5 x information_gain`; the factor is already in the columns."""
    factor = "" if part.weight == 1 else f"{part.weight:g} x "
    return f"{part.label} = {factor}{part.reward}"


def _turn_columns(receipt: Receipt) -> list[_Column]:
    turns = receipt.turns
    actions = [line.action[:_ACTION_CHARS] for line in turns]
    tokens = [line.tokens for line in turns]
    return [
        _Column("turn", [str(line.turn + 1) for line in turns], "sum"),
        _Column("action", actions, ""),
        *(_reward_column(part.label, turns) for part in receipt.parts),
        _Column("normalised", *_summed([line.reward for line in turns])),
        *_term_columns(turns),
        _Column("advantage", [line.advantage for line in turns]),
        _Column("tokens", tokens, sum(tokens), signed=False),
        _Column("weight", [line.weight for line in turns], signed=False),
        _Column("contribution", *_summed([line.contribution for line in turns])),
    ]


def _summed(values: list[float]) -> tuple[list[float], float]:
    return values, sum(values, 0.0)


def _reward_column(label: str, turns: Sequence[TurnLine]) -> _Column:
    cells = [line.parts.get(label) for line in turns]
    return _Column(label, cells, sum((cell for cell in cells if cell is not None), 0.0))


def _term_columns(turns: Sequence[TurnLine]) -> list[_Column]:
    """Return and baseline of each term; its centre, scale and weight where they do something."""
    columns = []
    count = len(turns[0].terms) if turns else 0
    for number in range(count):
        terms = [line.terms[number] for line in turns]
        named = f"{terms[0].name} " if count > 1 else ""
        columns.append(_Column(f"{named}return", [term.returns for term in terms]))
        columns.append(_Column(f"{named}baseline", [term.baseline for term in terms]))
        columns += _optional(named, terms)
    return columns


def _optional(named: str, terms: Sequence[TermReceipt]) -> list[_Column]:
    columns = (
        ("center", [term.center for term in terms], 0.0),
        ("scale", [term.scale for term in terms], 1.0),
        ("factor", [term.weight for term in terms], 1.0),
    )
    return [
        _Column(named + title, cells, signed=title == "center")
        for title, cells, neutral in columns
        if any(cell != neutral for cell in cells)
    ]


def _gain(receipt: Receipt) -> str:
    turns = receipt.turns
    what = receipt.gold_form.replace("_", "-")
    unit = " (nats a token)" if receipt.gold_form == "log_probability" else ""
    gains = [line.information_gain for line in turns]
    columns = [
        _Column("turn", [str(line.turn + 1) for line in turns], "sum"),
        _Column("action", [line.action[:_ACTION_CHARS] for line in turns], ""),
        _Column(what, [line.gold for line in turns]),
        _Column("gain", gains, sum((gain for gain in gains if gain is not None), 0.0)),
    ]
    head = (
        f'information gain: {what} of "{receipt.gold_answer}" in what each turn saw{unit}; '
        f"scored by {receipt.scored_by or 'the given probes'}"
    )
    return f"{head}\n{_table(columns)}"


def _rollouts(receipt: Receipt) -> str:
    lines = receipt.rollouts
    tokens = [line.tokens for line in lines]
    columns = [
        _Column("rollout", [_short(line.id, receipt.id) for line in lines], "sum"),
        _Column("status", [line.status for line in lines], ""),
        _Column("reward", [line.reward for line in lines]),
        _Column("tokens", tokens, sum(tokens), signed=False),
        _Column("contribution", *_summed([line.contribution for line in lines])),
        _Column("answer", [" ".join(line.answer.split())[:_ANSWER_CHARS] for line in lines], ""),
    ]
    name = f"group {receipt.group}" if receipt.group else "no group"
    head = f"{name}: {len(lines)} rollout{'s' if len(lines) > 1 else ''} (* this one)"
    loss = f"loss at ratio 1 = -(sum of contributions) = {round(receipt.loss, 12) + 0.0:.6g}"
    return f"{head}\n{_table(columns)}\n{loss}"


def _short(id: str, this: str) -> str:
    return f"{id[:12]}{' *' if id == this else ''}"


def _table(columns: Sequence[_Column]) -> str:
    texts = [_texts(column) for column in columns]
    widths = [max(map(len, cells)) for cells in texts]
    left = [all(isinstance(cell, str) for cell in column.cells) for column in columns]
    rows = []
    for cells in zip(*texts, strict=True):
        padded = (
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(cells, widths, left, strict=True)
        )
        rows.append("  ".join(padded).rstrip())
    return "\n".join(rows)


def _texts(column: _Column) -> list[str]:
    """Title, cells and total, all numbers with as many decimals as the smallest needs."""
    cells = [*column.cells, column.total]
    numbers = [cell for cell in cells if isinstance(cell, float) and cell]
    decimals = _decimals(numbers)

    def text(cell: float | int | str | None) -> str:
        if isinstance(cell, str):
            return " ".join(cell.split())
        if cell is None:
            return ""
        if isinstance(cell, int):
            return str(cell)
        rounded = round(cell, decimals) + 0.0  # no negative zero
        tiny = not rounded and abs(cell) > _NOISE
        sign = "+" if column.signed else ""
        return f"{cell:{sign}.0e}" if tiny else f"{rounded:{sign}.{decimals}f}"

    shown = [text(cell) for cell in column.cells]
    return [
        column.title,
        *("-" if cell is None else t for cell, t in zip(column.cells, shown, strict=True)),
        text(column.total),
    ]


def _decimals(numbers: Sequence[float]) -> int:
    """4, or what shows four digits of the largest number, 12 at most."""
    largest = max((abs(number) for number in numbers), default=1.0)
    return 4 if largest >= 0.1 else min(12, 3 - math.floor(math.log10(largest)))
