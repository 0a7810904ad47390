"""QALD-9-plus: the test part, over DBpedia; see `qald`."""

from eval.benchmarks.qald import load_plus as load

__all__ = ["load"]
