"""Scores of choices, entity sets, labels and numbers. Pure but for scikit-learn's AUROC."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from eval.metrics.text import Normaliser, Overlap, normalise, set_overlap

# What stands behind a letter that names a choice. A space alone does not: "A fracture" is no answer A,
# and neither is the genus of "E. coli", whose next word is not capitalised.
_END = (
    r"""(?:\s*$|\s*[)\]:*}]|["'”’](?!\w)|\.(?:\s*$|\s+[^a-z\s])|\s*\n|\s+[-–—]\s|"""
    r"""\s*,(?!\s*[A-Za-z](?!\w))|\s+(?:because|since|as)\b)"""
)
_LEADING = re.compile(rf"\W*(?:(?i:option|answer|choice)\W+)?([A-Za-z]){_END}")
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)\s+(?:is|would\s+be)\b|\banswer\s*:)\W*"
    rf"(?i:(?:option|choice)\W+)?(?:([A-Za-z]){_END}|([B-HJ-Z])(?![\w.'’]))"
)
_WITH_TEXT = re.compile(r"\W*([A-Za-z])[).:]?\s+(.+)", re.DOTALL)
# begins where a run of signs does, and takes whole words: a long run of either is read once
_SAYS = re.compile(r"(?i)(?<!\W)\W*(?:\b\w+\W+){0,2}?the\s+(?:\b\w+\s+)?answer\s+is\b[\s:]*")
_MINUS = re.compile(r"(?<!\w)[-−](?=\.?\d)")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_LIST = re.compile(r"[,;\n]|\band\b")


def multiple_choice(prediction: str, choices: Sequence[str], right: int) -> float:
    """1.0 when the prediction names the right choice, by its letter (A is the first) or its text.

    A text counts before a letter, so that the choice "A" of another letter is not taken for one. Texts
    are compared after normalisation, signs and decimal points of numbers kept; where several choices are
    then the same, or one is nothing, as they are written. A letter stands alone, before a delimiter or
    its own text, or behind "the answer is"; a reply that states two letters names none.

    Raises:
        ValueError: `right` is not the index of a choice.
    """
    if not 0 <= right < len(choices):
        raise ValueError(f"choice {right} of {len(choices)}")
    said = prediction.strip()
    for text in (said, _SAYS.sub("", said, count=1)):
        named = _named_by_text(text, choices)
        if named:
            return float(right in named)
    return float(_named_by_letter(said, choices) == right)


def _named_by_text(said: str, choices: Sequence[str]) -> list[int]:
    """Places of the choices that the whole text is; more than one only where they are written alike."""
    plain = _plain(said)
    found = [place for place, choice in enumerate(choices) if _plain(choice) == plain]
    if plain and len(found) == 1:
        return found
    return [place for place in found if _raw(choices[place]) == _raw(said) != ""]


def _named_by_letter(said: str, choices: Sequence[str]) -> int | None:
    """Place of the choice whose letter the text gives; None when it gives none, or several."""
    with_text = _WITH_TEXT.match(said)
    if with_text and _place(with_text[1]) in _named_by_text(with_text[2].strip(), choices):
        return _place(with_text[1])
    leading = _LEADING.match(said)
    if leading:
        return _place(leading[1])
    stated = {_place(match[1] or match[2]) for match in _STATED.finditer(said)}
    return stated.pop() if len(stated) == 1 else None


def _place(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _plain(text: str) -> str:
    return normalise(_POINT.sub("point", _MINUS.sub("minus", text)))


def _raw(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def entities_in(prediction: str, gold: Collection[str], by: Normaliser = normalise) -> list[str]:
    """The entities that a text lists, in its order.

    Gold entities are looked for first, so that one that holds "and" or a comma itself is not cut; the
    rest is cut at commas, semicolons, line breaks and "and". Parts that normalise to nothing are no
    entities.
    """
    wanted = {by(one) for one in gold} - {""}
    if by(prediction) in wanted:
        return [prediction]
    cuts = [(0, 0), *(match.span() for match in _LIST.finditer(prediction))]
    starts = [end for _, end in cuts]
    ends = [*(start for start, _ in cuts[1:]), len(prediction)]
    longest = max((len(_LIST.split(one)) for one in gold), default=1)
    found: list[str] = []
    place = 0
    while place < len(starts):
        spans = range(min(longest, len(starts) - place), 0, -1)
        parts = ((size, prediction[starts[place] : ends[place + size - 1]]) for size in spans)
        whole = next(((size, part) for size, part in parts if by(part) in wanted), None)
        size, part = whole or (1, prediction[starts[place] : ends[place]])
        found += [part] if by(part) else []
        place += size
    return found


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
