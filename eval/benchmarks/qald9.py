"""QALD-9: the training part, over DBpedia; see `qald`."""

from eval.benchmarks.qald import load_train as load

__all__ = ["load"]
