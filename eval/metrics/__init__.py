"""Metrics, as pure functions: answers, evidence, choices, retrieval, abstention, samples, usage."""

from eval.metrics.answers import (
    SCORERS,
    AnswerScore,
    Scorer,
    exact_match,
    scorer,
    token_f1,
)
from eval.metrics.text import Overlap, contains, normalise

__all__ = [
    "SCORERS",
    "AnswerScore",
    "Overlap",
    "Scorer",
    "contains",
    "exact_match",
    "normalise",
    "scorer",
    "token_f1",
]
