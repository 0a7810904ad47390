"""HotpotQA (distractor): two-hop questions with supporting titles."""

from __future__ import annotations

from eval.benchmarks import multihop
from eval.benchmarks.base import Benchmark, Split
from eval.data import DataFolder


def load(data: DataFolder, split: Split) -> Benchmark:
    """See `multihop.load`."""
    return multihop.load("hotpotqa", data, split)
