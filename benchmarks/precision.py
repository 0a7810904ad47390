"""What float32 and bfloat16 cost on this machine: a training pass of a model in the one and the other.

A pass is forward and backward of the learner over one pack of rows of random tokens. The types come in
the order float32, bfloat16, bfloat16, float32, after one pass of each that does not count; the median
of each is told, how many times as fast bfloat16 is, and which of the two `native` stands for here:

    python benchmarks/precision.py [--model micro] [--tokens 2048] [--rounds 5] [--threads 0]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.policies.catalog import resolve  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from rl.attention import row_lengths  # noqa: E402
from rl.engine import load_trainable  # noqa: E402
from rl.precision import native  # noqa: E402

ORDER = ("float32", "bfloat16", "bfloat16", "float32")


def passed(model: Any, tokens: int, row: int) -> float:
    """Seconds of one forward and backward pass over rows of `row` tokens."""
    count = max(1, tokens // row)
    vocabulary = model.model.config.vocab_size
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, count * row))
    positions = torch.arange(row).repeat(count)
    targets = torch.nonzero(positions).flatten()
    began = time.perf_counter()
    with row_lengths([row] * count):
        (-model(ids, positions, targets).mean()).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    """Time both types by turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="micro")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--row", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 for PyTorch's own number")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = resolve(args.model, load_settings().models_dir)
    models = {name: load_trainable(folder, None, getattr(torch, name)) for name in ORDER[:2]}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        passed(model, args.tokens, args.row)
    for _ in range(args.rounds):
        for name in ORDER:
            seconds[name].append(passed(models[name], args.tokens, args.row))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print("| type | seconds a pass | from | to |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {middle[name]:.3f} | {min(values):.3f} | {max(values):.3f} |")
    ratio = middle["float32"] / middle["bfloat16"]
    print(f"\nbfloat16 is {ratio:.2f} times as fast as float32; `native` is {native()} here")


if __name__ == "__main__":
    main()
