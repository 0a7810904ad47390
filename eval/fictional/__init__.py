"""Closed worlds that no model has seen: corpus, graph and questions from a seed.

`chance` makes values from keys, `names` invents names, `schema` lists kinds and relations, `world` says
what is true, `passages`, `graph` and `questions` tell it, `make` writes the files, `gold` executes the
gold tool sequences. After the idea of FictionalHot (ReSeek, arXiv 2510.00568); the generator is ours.
"""
