"""The registry of question sets; `load` is the only door."""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from eval.benchmarks.base import Benchmark, Split, split_of
from eval.data import DataFolder
from kg.address import masked
from kg.errors import UsageError

# name to module beside this file; its `load(data, split)` gives the benchmark
_MODULES = {
    "library": "library",
    "hotpotqa": "hotpotqa",
    "hotpotqa_open": "hotpotqa_open",
    "2wikimultihopqa": "twowiki",
    "musique": "musique",
    "squad2": "squad2",
    "nq_open": "nq_open",
    "triviaqa": "triviaqa",
    "bamboogle": "bamboogle",
    "simpleqa": "simpleqa",
    "strategyqa": "strategyqa",
    "selfaware": "selfaware",
    "scifact": "scifact",
    "pubmedqa": "pubmedqa",
    "medqa": "medqa",
    "medmcqa": "medmcqa",
    "frames": "frames",
    "nq_titles": "nq_titles",
    "fever": "fever",
    "creak": "creak",
    "webquestions": "webquestions",
    "simplequestions": "simplequestions",
    "cwq": "cwq",
    "grailqa": "grailqa",
    "qald9": "qald9",
    "qald9plus": "qald9plus",
    "qald10": "qald10",
    "fiqa": "fiqa",
    "metaqa": "metaqa",
    "pathquestion": "pathquestion",
    "wc2014": "wc2014",
    "bbbp": "bbbp",
    "bace": "bace",
    "clintox": "clintox",
    "hiv": "hiv",
    "esol": "esol",
    "freesolv": "freesolv",
    "lipophilicity": "lipophilicity",
}
NAMES = tuple(_MODULES)
_OWN = (".jsonl", ".jsonl.gz")


def load(name: str, data: DataFolder, split: Split = "test") -> Benchmark:
    """The benchmark of that name, of a file of questions (`own`) or of a world's folder (`world`).

    Args:
        name: one of `NAMES`, a path or URL that ends in .jsonl or .jsonl.gz, or a folder with a world.
        data: holds one sub-folder a set.
        split: part to load.

    Raises:
        UsageError: no such benchmark (the nearest name is suggested), or its files are missing.
    """
    data.origin = ""
    found = _load(name, data, split)
    return replace(found, origin=data.origin or found.origin)


def _load(name: str, data: DataFolder, split: Split) -> Benchmark:
    if "://" in name or name.endswith(_OWN):
        return _own(name, data)
    if name not in _MODULES and (Path(name) / "world.json").is_file():
        from eval.benchmarks.world import load_world

        return replace(load_world(Path(name), split), origin=str(Path(name).resolve()))
    if name not in _MODULES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(NAMES)}"
        raise UsageError(f"no benchmark '{name}'", hint)
    module = import_module(f"eval.benchmarks.{_MODULES[name]}")
    benchmark: Benchmark = module.load(data, split)
    return benchmark


def _own(name: str, data: DataFolder) -> Benchmark:
    """A file of questions, fetched once where it is remote."""
    from eval.benchmarks.own import load_file

    if "://" not in name:
        return replace(load_file(Path(name)), origin=str(Path(name).resolve()))
    if not name.endswith(_OWN):
        raise UsageError(
            f"'{masked(name)}' is no file of questions: its name ends in neither {' nor '.join(_OWN)}",
            "fetch it under such a name; --data takes the URL of a folder of sets",
        )
    return load_file(data.fetched(name), fetched=True)


__all__ = ["NAMES", "Benchmark", "DataFolder", "Split", "load", "split_of"]
