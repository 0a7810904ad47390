"""turnwise and Inspect (inspect-ai), both ways; needs the extra `inspect`.

`log` converts a finished run folder to Inspect logs, which Inspect's viewer opens. `agent` lets Inspect
run turnwise as an agent, over any of its tasks or over turnwise's own question sets. Inspect finds the
latter by the entry point `turnwise`.
"""
