"""System prompts and tool instructions, as text files."""
