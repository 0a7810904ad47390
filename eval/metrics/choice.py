"""Scores of choices, entity sets, labels and numbers. Pure but for scikit-learn's AUROC."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from eval.metrics.letters import behind, stated
from eval.metrics.text import Normaliser, Overlap, normalise, set_overlap

_WITH_TEXT = re.compile(r"\W*([A-Za-z])[).:]?\s+(.+)", re.DOTALL)
# begins where a run of signs does, and takes whole words: a long run of either is read once
_SAYS = re.compile(r"(?i)(?<!\W)\W*(?:\b\w+\W+){0,2}?the\s+(?:\b\w+\s+)?answer\s+is\b[\s:]*")
_BOXED = re.compile(r"\\boxed\{\s*(?:\\\w+\{)?([^{}]*)\}")
_VERDICTS = frozenset(("yes", "no", "maybe", "true", "false"))
_VERDICT = re.compile(
    r"(?i)(?:^|[.,;:!?\n]\s{0,3}|\s[-–—]\s{1,3})\W{0,3}\b(yes|no|maybe|true|false)\b[*_)]{0,3}"
    r"(?=\s*(?:$|[,;:!\n]|\.(?!\s*\d)|(?:because|since|as)\b)|\s[-–—]\s)"
)
_MINUS = re.compile(r"(?<!\w)[-−](?=\.?\d)")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
# the comma of 2,000 is in a number
_LIST = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))|[;\n]|\band\b")


def multiple_choice(prediction: str, choices: Sequence[str], right: int) -> float:
    """1.0 when the prediction names the right choice, by its letter (A is the first) or its text.

    A text counts before a letter, so that the choice "A" of another letter is not taken for one. Texts
    are compared after normalisation, signs and decimal points of numbers kept; where several choices are
    then the same, or one is nothing, as they are written. Where all choices are yes, no, maybe, true or
    false, one that begins a clause of its own is enough ("Yes, because ..."). A letter stands alone,
    before a delimiter or its own text, in brackets behind that, in a box, or in a statement ("the answer
    is B", "I choose B", "B is correct"); a reply that states two letters names none.

    Raises:
        ValueError: `right` is not the index of a choice.
    """
    if not 0 <= right < len(choices):
        raise ValueError(f"choice {right} of {len(choices)}")
    said = prediction.strip()
    bare, boxes = _SAYS.sub("", said, count=1), {box.strip() for box in _BOXED.findall(said)}
    bracketed = behind(bare)
    if bracketed and _raw(bare) not in map(_raw, choices):
        named = _named_by_text(bracketed[0], choices)
        if named:
            return float(right in named and right == _place(bracketed[1]))
    for text in (said, bare, *(boxes if len(boxes) == 1 else ())):
        named = _named_by_text(text, choices) or _named_by_clause(text, choices)
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


def _named_by_clause(said: str, choices: Sequence[str]) -> list[int]:
    """Places of the one verdict that a text gives, first of all, before it says why."""
    verdicts = [_plain(choice) for choice in choices]
    if not _VERDICTS.issuperset(verdicts):
        return []
    given = list(_VERDICT.finditer(said))
    words = {match[1].lower() for match in given}
    if len(words) != 1 or given[0].start():
        return []
    return [place for place, verdict in enumerate(verdicts) if verdict in words]


def _named_by_letter(said: str, choices: Sequence[str]) -> int | None:
    """Place of the choice whose letter the text gives; None when it gives none, or several."""
    with_text = _WITH_TEXT.match(said)
    if with_text and _place(with_text[1]) in _named_by_text(with_text[2].strip(), choices):
        return _place(with_text[1])
    letters = stated(said)
    return _place(letters.pop()) if len(letters) == 1 else None


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
