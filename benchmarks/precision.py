"""What float32 and bfloat16 cost on this processor: training passes, and tokens sampled.

A training pass is forward and backward over one pack of rows of random tokens, as in a fine-tuning; a
sampling pass is one batch of random prompts through vLLM with short replies. The types come in the
order float32, bfloat16, bfloat16, float32, after one pass of each that does not count. Told are the
median, the slowest and the fastest pass of each type in tokens a second (trained; sampled), how many
times as fast float32 is, and which of the two `native` stands for here:

    python benchmarks/precision.py [--model micro] [--rounds 3] [--threads 0]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.policies.base import Policy, Request, Sampling  # noqa: E402
from agent.policies.catalog import resolve  # noqa: E402
from agent.policies.vllm import VllmPolicy  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from rl.attention import row_lengths  # noqa: E402
from rl.engine import load_trainable  # noqa: E402
from rl.precision import native  # noqa: E402

TYPES = ("float32", "bfloat16")
ROW, ROWS = 256, 8
PROMPTS, PROMPT, REPLY = 32, 128, 32
WORDS = 500  # random tokens are drawn from the first ones of a vocabulary, special ones aside

Pass = Callable[[], int]  # gives the number of tokens


def trained(folder: Path, name: str) -> Pass:
    """A forward and backward pass over one pack."""
    model = load_trainable(folder, None, getattr(torch, name))
    positions = torch.arange(ROW).repeat(ROWS)
    ids = torch.from_numpy(np.random.default_rng(0).integers(10, WORDS, ROW * ROWS))
    targets = torch.nonzero(positions).flatten()

    def once() -> int:
        with row_lengths([ROW] * ROWS):
            (-model(ids, positions, targets).mean()).backward()
        model.zero_grad(set_to_none=True)
        return len(ids)

    return once


def sampled(policy: Policy, runner: asyncio.Runner) -> Pass:
    """One batch of prompts that no pass before had."""
    chance = np.random.default_rng(0)
    drawn = Sampling(temperature=1.0, max_tokens=REPLY)

    def once() -> int:
        ids = chance.integers(10, WORDS, (PROMPTS, PROMPT)).tolist()
        requests = [Request((), tuple(row), drawn) for row in ids]
        done = runner.run(policy.generate(requests))
        return sum(len(one.token_ids) for one in done)

    return once


def speed(once: Pass) -> float:
    """Tokens a second of a pass."""
    began = time.perf_counter()
    tokens = once()
    return tokens / (time.perf_counter() - began)


def row(what: str, passes: dict[str, Pass], rounds: int) -> str:
    """A line of the table."""
    for once in passes.values():
        once()
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name in (*TYPES, *reversed(TYPES)):
            speeds[name].append(speed(passes[name]))
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    cells = [f"{middle[n]:,.0f} [{min(speeds[n]):,.0f}, {max(speeds[n]):,.0f}]" for n in TYPES]
    return f"| {what} | {' | '.join(cells)} | {middle['float32'] / middle['bfloat16']:.2f} × |"


def main() -> None:
    """Time both types by turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="micro")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for PyTorch's own number")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    if torch.cuda.is_available():
        sys.exit("this compares the types on a processor, and there is a GPU here")
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = resolve(args.model, load_settings().models_dir)
    print("| pass | float32, tokens/s | bfloat16, tokens/s | float32 is faster by |")
    print("| --- | --- | --- | --- |")
    print(row("training", {name: trained(folder, name) for name in TYPES}, args.rounds), flush=True)
    with asyncio.Runner() as runner:
        engines = {n: VllmPolicy(folder, dtype=n, cache_gib=1, isolated=True) for n in TYPES}
        passes = {name: sampled(policy, runner) for name, policy in engines.items()}
        print(row("sampling", passes, args.rounds))
        for policy in engines.values():
            runner.run(policy.aclose())
    print(f"\n`native` is {native()} here")


if __name__ == "__main__":
    main()
