"""The page of the trace viewer."""
