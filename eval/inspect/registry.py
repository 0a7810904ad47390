"""What Inspect finds by the entry point `turnwise`."""

from eval.inspect.agent import answers, question_set, turnwise

__all__ = ["answers", "question_set", "turnwise"]
