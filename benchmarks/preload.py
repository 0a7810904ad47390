"""What a library that `agent train` starts itself with does on CPU, step by step.

The same recipe is run from the same start without and with it, in processes of their own, in the order
without, with, with, without; rollouts and update one after the other, so that each has its own time.
Told for each step: how many times as fast it and its parts are with the library, over both runs of each;
the same over the second half of the steps; how far the numbers of the four runs are apart; and the peak
memory of the processes. With `--against` the library is there both times, and "without" is what its
options are there, all of them: what the program chooses against, say, MALLOC_CONF with
`background_thread:true,oversize_threshold:1,dirty_decay_ms:-1,muzzy_decay_ms:-1`. The machine should do
nothing else:

    python benchmarks/preload.py allocator|openmp [RECIPE] [--steps 8] [--data DATA] [--set key=value]
                                 [--against NAME=VALUE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from agent import preload  # noqa: E402

LIBRARIES = {"allocator": preload.ALLOCATOR, "openmp": preload.OPENMP}
ORDER = (False, True, True, False)
PARTS = ("seconds/collect", "seconds/update", "seconds")
NUMBERS = ("reward", "gap_mean", "loss", "grad_norm")

Step = dict[str, float]


def run(used: bool, out: Path, args: argparse.Namespace) -> tuple[list[Step], float]:
    """Metrics of each step, and the process's peak memory in MiB."""
    library = LIBRARIES[args.library]
    command = [sys.executable, str(ROOT / "cli.py"), "train", args.recipe, "--out", str(out)]
    command += ["--data", str(args.data)] if args.data else []
    changes = [f"steps={args.steps}", "validation.every=0", "validation.misled=false"]
    changes += ["rollouts.ahead=false", *args.set]
    command += [part for change in changes for part in ("--set", change)]
    without = dict([args.against.split("=", 1)]) if args.against else {library.variable: "system"}
    with subprocess.Popen(
        command, env=os.environ | ({} if used else without), stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"agent train ended with {process.returncode}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows, usage.ru_maxrss / 1024


def apart(runs: Sequence[Sequence[Step]]) -> dict[str, float]:
    """The largest difference of a metric between runs at any step."""
    return {
        name: max(max(values) - min(values) for values in by_step(runs, name)) for name in NUMBERS
    }


def by_step(runs: Sequence[Sequence[Step]], name: str) -> list[list[float]]:
    """A metric of each step in each run; what did not happen is 0."""
    return [[step.get(name, 0.0) for step in steps] for steps in zip(*runs, strict=True)]


def ratio(without: float, used: float) -> str:
    """How many times as fast; nothing where nothing was done."""
    return f"{without / used:.2f}" if used else ""


def main() -> None:
    """Run with and without, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("recipe", nargs="?", default="train_demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--against", metavar="NAME=VALUE", help="an option of the library")
    args = parser.parse_args()
    library = LIBRARIES[args.library]
    name, equals, _ = (args.against or "").partition("=")
    if args.against and not (equals and name in library.options):
        parser.error(f"--against is NAME=VALUE, of one of: {', '.join(library.options)}")
    other = f"under {args.against}" if args.against else "without"
    if library.preloaded(os.environ) or library.declined(os.environ):
        parser.error(f"a choice was made already: unset LD_PRELOAD and {library.variable}")
    if not library.wanted() or library.installed() is None:
        parser.error(f"a GPU, or none of the kind: {library.install}")
    runs: dict[bool, list[list[Step]]] = {False: [], True: []}
    peaks: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for number, used in enumerate(ORDER):
            how = "with" if used else other
            print(f"run {number + 1} of {len(ORDER)}: {how}", file=sys.stderr, flush=True)
            steps, peak = run(used, Path(folder) / f"run-{number}", args)
            runs[used].append(steps)
            peaks[used].append(peak)
    took = {
        used: {part: [fmean(times) for times in by_step(runs[used], part)] for part in PARTS}
        for used in runs
    }
    print(f"{args.library}: times as fast with it\n")
    print("| step | rollouts | update | whole step |\n| --- | --- | --- | --- |")
    for step in range(args.steps):
        cells = (ratio(took[False][part][step], took[True][part][step]) for part in PARTS)
        print(f"| {step + 1} | {' | '.join(cells)} |")
    later = slice(args.steps // 2, None)
    cells = (ratio(sum(took[False][part][later]), sum(took[True][part][later])) for part in PARTS)
    print(f"| second half | {' | '.join(cells)} |")
    differences = apart([*runs[False], *runs[True]])
    print("\nlargest difference between the runs: ", end="")
    print(", ".join(f"{name} {value:.2g}" for name, value in differences.items()))
    print(f"peak memory, MiB: {max(peaks[False]):,.0f} {other}, {max(peaks[True]):,.0f} with")


if __name__ == "__main__":
    main()
