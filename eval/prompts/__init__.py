"""Prompts of the evaluation, as text files."""
