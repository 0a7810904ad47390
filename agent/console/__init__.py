"""The command line's conversation with a person: one-shot answers, JSON, and the REPL."""
