"""How much memory and time a fictional world takes by its size; a process of its own makes each.

python benchmarks/world.py [--passages 1000 100000 1000000] [--out benchmarks/out/world.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # beside this file lies one named as a package

from eval.fictional.make import make_world  # noqa: E402

PASSAGES_PER_ENTITY = 1.7
QUESTIONS = 2000


def make(passages: int, seed: int) -> dict[str, Any]:
    """Make a world in a folder that goes again; what it took, as this process saw it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    entities = round(passages / PASSAGES_PER_ENTITY)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        facts = make_world(Path(folder), seed, entities, QUESTIONS)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "passages": facts["passages"],
        "entities": facts["entities"],
        "triples": facts["triples"],
        "seconds": round(seconds, 1),
        "passages_per_s": round(facts["passages"] / seconds),
        "disk_mb": round(size / 1e6, 1),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "memory_before_mb": round(before / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/world.json"))
    args = parser.parse_args()
    rows = []
    for passages in args.passages:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(make, (passages, args.seed)))
        print(json.dumps(rows[-1]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
