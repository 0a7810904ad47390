"""QALD-10: the test part, over Wikidata; see `qald`."""

from functools import partial

from eval.benchmarks import qald

load = partial(qald.load_test, "qald10", "qald10/test.jsonl.gz")
