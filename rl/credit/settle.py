"""From turns to tokens: checks before an estimator runs, and the `Credit` it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rl.credit.group import Batch, CreditError, Floats, Ints
from rl.credit.ledger import Credit, Ledger, PartAccount, Term, Unit


def problems(batch: Batch) -> dict[int, CreditError]:
    """What is wrong with single trajectories: row number to the first NaN or infinite number.

    Looks at rewards where they are given and at values of sampled tokens.
    """
    found: dict[int, CreditError] = {}
    for i, name in enumerate(batch.ids):
        error = _bad_reward(batch, i, name) or _bad_value(batch, i, name)
        if error is not None:
            found[i] = error
    return found


def check(batch: Batch, **shares: float) -> None:
    """Refuse a batch with numbers that are not finite, and options outside 0..1.

    Args:
        batch: any.
        shares: discounts and the like, by name.

    Raises:
        CreditError: names the option, or the first trajectory and turn at fault.
    """
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise CreditError(f"{name} is {value}", "it lies between 0 and 1")
    for error in problems(batch).values():
        raise error


def drop_and_count(estimator: Callable[[Batch], Credit], batch: Batch) -> Credit:
    """Credit over the sound trajectories; the others get zeros and an error each in `dropped`.

    A group shrinks by its dropped trajectories; one that loses all of them is gone.
    """
    bad = problems(batch)
    if not bad:
        return estimator(batch)
    kept = np.array([i for i in range(len(batch)) if i not in bad], dtype=np.int64)
    credit = estimator(batch.take(kept))
    advantages = [np.zeros(len(mask)) for mask in batch.sampled]
    for row, values in zip(kept, credit.advantages, strict=True):
        advantages[row] = values
    ledger, targets = _widen(credit.ledger, batch, kept), credit.targets
    if targets is not None:
        given = dict(zip(kept.tolist(), targets, strict=True))
        nothing = [np.full(len(mask), np.nan) for mask in batch.sampled]
        targets = tuple(given.get(row, none) for row, none in enumerate(nothing))
    return Credit(tuple(advantages), ledger, tuple(bad.values()), targets)


def raw_accounts(batch: Batch) -> tuple[PartAccount, ...]:
    """The reward parts as they are: center 0, scale 1."""
    shape = batch.turn_mask.shape
    return tuple(
        PartAccount(p.name, p.values, p.given, np.zeros(shape), np.ones(shape)) for p in batch.parts
    )


def term(
    batch: Batch,
    name: str,
    unit: Unit,
    returns: Floats,
    *,
    baseline: Floats | float = 0.0,
    center: Floats | float = 0.0,
    scale: Floats | float = 1.0,
    weight: float = 1.0,
    discount: float | None = 1.0,
) -> Term:
    """A term whose columns of shape [n, 1] or () are spread over all turns."""
    shape = batch.turn_mask.shape

    def column(values: Floats | float) -> Floats:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), shape).copy()

    columns = (column(returns), column(baseline), column(center), column(scale))
    return Term(name, unit, *columns, weight, discount)


def per_turn(
    batch: Batch, terms: tuple[Term, ...], accounts: tuple[PartAccount, ...] | None = None
) -> Credit:
    """Credit whose every turn has one advantage, borne by each of its sampled tokens."""
    parts = raw_accounts(batch) if accounts is None else accounts
    ledger = Ledger(batch.ids, batch.turn_mask, batch.tokens, parts, terms)
    advantage = ledger.advantage
    out = []
    for i, row in enumerate(batch.spans):
        tokens = np.zeros(len(batch.sampled[i]))
        for k, (start, stop) in enumerate(row):
            tokens[start:stop] = advantage[i, k]
        out.append(np.where(batch.sampled[i], tokens, 0.0))
    return Credit(tuple(out), ledger)


def per_token(
    batch: Batch,
    returns: tuple[Floats, ...],
    baselines: tuple[Floats, ...],
    center: float,
    scale: float,
) -> Credit:
    """Credit with an advantage per token: (return - baseline - center) / scale."""
    out = tuple(
        np.where(mask, (r - b - center) / scale, 0.0)
        for mask, r, b in zip(batch.sampled, returns, baselines, strict=True)
    )
    live = batch.tokens > 0
    one = term(
        batch,
        "token",
        Unit.TOKEN,
        turn_means(batch, returns),
        baseline=turn_means(batch, baselines),
        center=np.where(live, center, 0.0),
        scale=np.where(live, scale, 1.0),
        discount=None,
    )
    ledger = Ledger(batch.ids, batch.turn_mask, batch.tokens, raw_accounts(batch), (one,))
    return Credit(out, ledger)


def turn_means(batch: Batch, tokens: tuple[Floats, ...]) -> Floats:
    """float64[n, turns]: mean over each turn's sampled tokens; 0 for a turn without any."""
    out = np.zeros(batch.turn_mask.shape)
    for i, row in enumerate(batch.spans):
        for k, (start, stop) in enumerate(row):
            chosen = tokens[i][start:stop][batch.sampled[i][start:stop]]
            out[i, k] = chosen.mean() if len(chosen) else 0.0
    return out


def _widen(ledger: Ledger, batch: Batch, kept: Ints) -> Ledger:
    shape = batch.turn_mask.shape

    def column(values: Floats, fill: float = 0.0) -> Floats:
        out = np.full(shape, fill)
        out[kept] = values
        return out

    alive = np.zeros(len(batch), dtype=np.bool_)
    alive[kept] = True
    parts = tuple(
        PartAccount(
            p.name,
            column(p.value),
            column(p.given.astype(np.float64)) > 0,
            column(p.center),
            column(p.scale, 1.0),
        )
        for p in ledger.parts
    )
    terms = tuple(
        replace(
            t,
            returns=column(t.returns),
            baseline=column(t.baseline),
            center=column(t.center),
            scale=column(t.scale, 1.0),
        )
        for t in ledger.terms
    )
    mask = batch.turn_mask & alive[:, None]
    return Ledger(batch.ids, mask, np.where(mask, batch.tokens, 0), parts, terms)


def _bad_reward(batch: Batch, i: int, name: str) -> CreditError | None:
    bad = [(p.given[i] & ~np.isfinite(p.values[i])) for p in batch.parts]
    if not any(row.any() for row in bad):
        return None
    turn = min(int(np.flatnonzero(row)[0]) for row in bad if row.any())
    part = next(p for p, row in zip(batch.parts, bad, strict=True) if row[turn])
    message = f"trajectory {name}, turn {turn}: reward '{part.name}' is {part.values[i, turn]}"
    return CreditError(message, trajectory=name, turn=turn)


def _bad_value(batch: Batch, i: int, name: str) -> CreditError | None:
    if batch.values is None:
        return None
    bad = np.flatnonzero(batch.sampled[i] & ~np.isfinite(batch.values[i]))
    if not len(bad):
        return None
    token = int(bad[0])
    turn = int(np.searchsorted(batch.spans[i][:, 1], token, side="right"))
    message = f"trajectory {name}, turn {turn}: value {batch.values[i][token]} at token {token}"
    return CreditError(message, trajectory=name, turn=turn)
