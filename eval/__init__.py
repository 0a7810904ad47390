"""Evaluation: question sets, metrics, intervals."""
