"""2WikiMultihopQA: same shape as HotpotQA."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks import hotpotqa
from eval.benchmarks.base import Benchmark, Split


def load(data: Path, split: Split) -> Benchmark:
    """See `hotpotqa.load`."""
    return hotpotqa.load(data, split, "2wikimultihopqa")
