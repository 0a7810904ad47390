"""Answer metrics, as the official SQuAD 1.1 and 2.0 scorers define them. Pure functions.

Source: the normalisation, exact match and token F1 of Rajpurkar et al. (SQuAD); HotpotQA,
2WikiMultihopQA and MuSiQue normalise the same way.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the prediction equals an answer, both normalised; no answers: it must be empty."""
    if not answers:
        return float(not prediction.strip())
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best bag-of-tokens F1 over the answers; no answers means the prediction must be empty."""
    if not answers:
        return float(not prediction.strip())
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def contains(text: str, answer: str) -> bool:
    """Whether the normalised answer occurs in the text on token boundaries."""
    needle = normalise(answer)
    return bool(needle) and f" {needle} " in f" {normalise(text)} "


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0
