"""Scores of choices, entity sets, labels and numbers. Pure but for scikit-learn's AUROC."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from eval.metrics.text import Normaliser, Overlap, normalise, set_overlap

_LETTER = re.compile(r"^\W*(?:(?:option|answer|choice)\W+)?([A-Za-z])(?:\W|$)", re.IGNORECASE)


def multiple_choice(prediction: str, choices: Sequence[str], right: int) -> float:
    """1.0 when the prediction names the right choice, by its letter (A is the first) or its text.

    A text counts before a letter, so that the choice "A" of another letter is not taken for one.

    Raises:
        ValueError: `right` is not the index of a choice.
    """
    if not 0 <= right < len(choices):
        raise ValueError(f"choice {right} of {len(choices)}")
    plain = [normalise(choice) for choice in choices]
    said = normalise(prediction)
    if said and said in plain:
        return float(said == plain[right])
    letter = _LETTER.match(prediction.strip())
    return float(letter is not None and ord(letter[1].upper()) - ord("A") == right)


def hits_at_1(ranked: Sequence[str], gold: Collection[str], by: Normaliser = normalise) -> float:
    """1.0 when the first answer is one of the gold entities."""
    return float(bool(ranked) and by(ranked[0]) in {by(answer) for answer in gold} - {""})


def entity_overlap(
    predicted: Collection[str], gold: Collection[str], by: Normaliser = normalise
) -> Overlap:
    """Precision, recall and F1 of answer sets, as graph question answering reports them."""
    return set_overlap({by(p) for p in predicted} - {""}, {by(g) for g in gold} - {""})


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Area under the ROC curve; NaN when there is only one class.

    Raises:
        ValueError: different lengths, or a score that is not finite.
    """
    from sklearn.metrics import roc_auc_score

    _check(labels, scores)
    if len(set(map(bool, labels))) < 2:
        return math.nan
    return float(roc_auc_score(list(map(bool, labels)), list(scores)))


def rmse(predicted: Sequence[float], gold: Sequence[float]) -> float:
    """Root of the mean squared error, in the unit of the values.

    Raises:
        ValueError: no values, different lengths, or a value that is not finite.
    """
    _check(gold, predicted)
    _check(predicted, gold)
    if not gold:
        raise ValueError("no values")
    return math.sqrt(
        math.fsum((p - g) ** 2 for p, g in zip(predicted, gold, strict=True)) / len(gold)
    )


def _check(others: Sequence[object], values: Sequence[float]) -> None:
    if len(others) != len(values):
        raise ValueError(f"{len(values)} values for {len(others)}")
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"value {place} is {value}")
