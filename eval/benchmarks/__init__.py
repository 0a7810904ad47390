"""The registry of question sets; `load` is the only door."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

from eval.benchmarks.base import Benchmark, Split, split_of
from kg.errors import UsageError

NAMES = ("library", "hotpotqa", "2wikimultihopqa", "musique", "squad2", "nq_open")
_MODULES = {"2wikimultihopqa": "twowiki"}


def load(name: str, data: Path, split: Split = "test") -> Benchmark:
    """The benchmark of that name.

    Args:
        name: one of `NAMES`.
        data: folder that holds one sub-folder a set.
        split: part to load.

    Raises:
        UsageError: no such benchmark (the nearest name is suggested), or its files are missing.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(NAMES)}"
        raise UsageError(f"no benchmark '{name}'", hint)
    module = import_module(f"eval.benchmarks.{_MODULES.get(name, name)}")
    benchmark: Benchmark = module.load(data, split)
    return benchmark


__all__ = ["NAMES", "Benchmark", "Split", "load", "split_of"]
