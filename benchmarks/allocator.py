"""What the memory allocator does to a training run on CPU: glibc's against jemalloc, step by step.

The same recipe is run from the same start with each, in processes of their own, in the order glibc,
jemalloc, jemalloc, glibc. Told for each step: tokens a second of the update, over both runs of an
allocator, and how much faster the one is, then over the second half of the steps; and the peak
memory of the processes. The machine should do nothing else:

    python benchmarks/allocator.py [RECIPE] [--steps 8] [--data DATA] [--set key=value]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from agent import allocator  # noqa: E402

ORDER = ("glibc", "jemalloc", "jemalloc", "glibc")


def run(name: str, out: Path, args: argparse.Namespace) -> tuple[list[float], float]:
    """Tokens a second of each step's update, and the process's peak memory in MiB."""
    command = [sys.executable, str(ROOT / "cli.py"), "train", args.recipe, "--out", str(out)]
    command += ["--data", str(args.data)] if args.data else []
    changes = [f"steps={args.steps}", "validation.every=0", "validation.misled=false", *args.set]
    command += [part for change in changes for part in ("--set", change)]
    environment = dict(os.environ) | ({allocator.VARIABLE: "system"} if name == "glibc" else {})
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"agent train ended with {process.returncode}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [row["speed/update_tokens"] for row in rows if "speed/update_tokens" in row]
    return found, used.ru_maxrss / 1024


def main() -> None:
    """Run both allocators and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="train_demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    args = parser.parse_args()
    if allocator.preloaded(os.environ) or allocator.declined(os.environ):
        parser.error(f"an allocator is chosen already: unset LD_PRELOAD and {allocator.VARIABLE}")
    if not allocator.wanted() or allocator.installed() is None:
        parser.error("a GPU, or no jemalloc (apt install libjemalloc2, or pip install ray)")
    speeds: dict[str, list[list[float]]] = {"glibc": [], "jemalloc": []}
    peaks: dict[str, list[float]] = {"glibc": [], "jemalloc": []}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(ORDER):
            print(f"run {number + 1} of {len(ORDER)}: {name}", file=sys.stderr, flush=True)
            speed, peak = run(name, Path(folder) / f"run-{number}", args)
            speeds[name].append(speed)
            peaks[name].append(peak)
    steps = min(len(one) for runs in speeds.values() for one in runs)
    mean = {
        name: [statistics.mean(one[step] for one in runs) for step in range(steps)]
        for name, runs in speeds.items()
    }
    print("| step | glibc, tokens/s | jemalloc | ratio |\n| --- | --- | --- | --- |")
    for step, (ours, theirs) in enumerate(zip(mean["jemalloc"], mean["glibc"], strict=True), 1):
        print(f"| {step} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")
    later = slice(steps // 2, None)
    ratio = statistics.median(mean["jemalloc"][later]) / statistics.median(mean["glibc"][later])
    print(f"\nsecond half, ratio of medians: {ratio:.2f}")
    print("peak memory, MiB: " + ", ".join(f"{k} {max(v):,.0f}" for k, v in peaks.items()))


if __name__ == "__main__":
    main()
