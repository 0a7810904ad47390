"""What Ray actors do for collection: the same groups in this process and over actors, side by side.

Collects groups of rollouts on a fictional world, in turn without actors and with them, each time into
an empty store. Reports episodes and sampled tokens a second from the moment the engines are ready, the
wall time with their start, and whether both ways drew the same tokens in the same groups. Actors divide
the cores of one machine among them: where the engine alone keeps all of them busy there is nothing to
win.

    python benchmarks/collect.py [--policy micro] [--actors 2] [--tasks 16] [--group 8] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.settings import load_settings  # noqa: E402
from agent.store import TrajectoryStore  # noqa: E402
from eval.fictional.make import make_world  # noqa: E402
from rl.collect import CollectReport, CollectRequest, collect  # noqa: E402
from tools.progress import bar  # noqa: E402

Drawn = dict[str, tuple[str, list[int]]]


@dataclass
class Side:
    """One way to collect: its reports, wall times and what the last round drew."""

    actors: int
    reports: list[CollectReport] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drawn: Drawn = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Medians over rounds."""
        middle = statistics.median
        return {
            "episodes_per_second": round(middle(r.episodes / r.seconds for r in self.reports), 3),
            "tokens_per_second": round(middle(r.tokens_per_second for r in self.reports), 1),
            "collecting_seconds": round(middle(r.seconds for r in self.reports), 2),
            "with_start_seconds": round(middle(self.seconds), 2),
        }


def drawn_in(store: Path) -> Drawn:
    """Group and tokens of every episode by its id."""
    with TrajectoryStore.open(store) as opened:
        return {t.id: (t.group, t.token_ids.tolist()) for t in opened.query()}


def play(side: Side, args: argparse.Namespace, root: Path) -> None:
    """Collect once, into an empty store."""
    store = root / f"{side.actors}-{len(side.reports)}.sqlite"
    request = CollectRequest(
        tasks=(str(root / "world"),),
        limit=args.tasks,
        group=args.group,
        concurrency=args.concurrency,
        actors=side.actors,
    )
    settings = load_settings(
        policy=args.policy, sampling={"temperature": 1.0}, search={"mode": "lexical"}
    )
    began = time.perf_counter()
    with bar(lines=True) as advance:
        report = collect(request, settings, str(store), lambda line: None, advance)
    side.seconds.append(time.perf_counter() - began)
    side.reports.append(report)
    side.drawn = drawn_in(store)


def compared(alone: Side, spread: Side, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides' figures, their ratio, and how many episodes are the same."""
    ours, theirs = alone.figures(), spread.figures()
    same = sum(spread.drawn.get(id) == one for id, one in alone.drawn.items())
    return {
        "policy": args.policy,
        "cores": os.cpu_count(),
        "episodes": len(alone.drawn),
        "concurrency": args.concurrency,
        "actors": args.actors,
        "rounds": args.rounds,
        "without_actors": ours,
        "with_actors": theirs,
        "throughput_ratio": round(theirs["tokens_per_second"] / ours["tokens_per_second"], 3),
        "same_ids": alone.drawn.keys() == spread.drawn.keys(),
        "same_group_and_tokens": f"{same} of {len(alone.drawn)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="micro")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=16, help="episodes at once, in all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=41, help="of the world")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/collect.json"))
    args = parser.parse_args()
    alone, spread = Side(0), Side(args.actors)
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder) / "world", args.seed, 200, 4 * args.tasks)
        for _ in range(args.rounds):
            for side in (alone, spread):
                play(side, args, Path(folder))
    row = compared(alone, spread, args)
    print(json.dumps(row))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
