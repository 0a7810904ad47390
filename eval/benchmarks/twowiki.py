"""2WikiMultihopQA: two to four hops with evidence triples; laid out as HotpotQA."""

from __future__ import annotations

from eval.benchmarks import multihop
from eval.benchmarks.base import Benchmark, Split
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """See `multihop.load`."""
    return multihop.load("2wikimultihopqa", data, split)
