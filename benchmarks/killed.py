"""`agent eval` killed at random moments against the same run left alone.

Both ask the same questions with nothing from the cache. One is left alone; the other is killed (SIGKILL,
the whole process group) several times, each time at a random moment after its first new episode, and
begun again by the same command. Told are the episodes that were finished at each kill, and how many
questions came out the same: in every token, in everything that is scored, and stored exactly once. A
folder of an earlier measurement is compared anew with `--kills 0`: its finished runs ask nothing.

    python benchmarks/killed.py hotpotqa squad2 scifact --data DATA [--limit 12] [--kills 5] [--seed 0]
        [--policy vllm:default] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # a file beside this one has a package's name

from agent.trajectory import Trajectory  # noqa: E402
from eval.folder import open_store  # noqa: E402

_AGENT = [sys.executable, "-c", "from cli import main; main()"]
_ROUNDING = 1e-4
_OF_ITS_OWN = {"id"}  # an id is drawn anew for each episode


def command(arguments: argparse.Namespace, out: Path) -> list[str]:
    """`agent eval` as a user would begin it and go on with it."""
    options = [
        "--data",
        arguments.data,
        "--policy",
        arguments.policy,
        "--limit",
        str(arguments.limit),
    ]
    return [*_AGENT, "eval", *arguments.sets, *options, "--no-cache", "--out", str(out)]


def begun(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    with log.open("ab") as lines:
        return subprocess.Popen(words, stdout=lines, stderr=lines, start_new_session=True)


def stored(out: Path) -> int:
    """Finished episodes in a run's folder; none before there is one. Only reads."""
    try:
        with closing(
            sqlite3.connect(f"file:{out / 'trajectories.sqlite'}?mode=ro", uri=True)
        ) as store:
            return int(store.execute("SELECT count(*) FROM episodes").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def killed(words: Sequence[str], out: Path, log: Path, after: float) -> int | None:
    """Kill a run `after` seconds from its first new episode; gives its episodes, None if it ended."""
    before, process = stored(out), begun(words, log)
    first: float | None = None
    while process.poll() is None:
        if first is None and stored(out) > before:
            first = time.monotonic()
        if first is not None and time.monotonic() >= first + after:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return stored(out)
        time.sleep(0.05)
    return None


def whole(words: Sequence[str], log: Path) -> float:
    """Seconds of the run to its end.

    Raises:
        SystemExit: it failed.
    """
    began = time.monotonic()
    if begun(words, log).wait() != 0:
        raise SystemExit(f"the run failed: see {log}")
    return time.monotonic() - began


def episodes(out: Path) -> Iterator[Trajectory]:
    """All of a run."""
    with open_store(out) as store:
        yield from store.query()


def samples(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What was scored, by set, question and seed."""
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return {
        (row["benchmark"], row["task"], row["seed"]): {
            name: value for name, value in row.items() if name not in _OF_ITS_OWN
        }
        for row in rows
    }


def compared(alone: Path, again: Path) -> dict[str, int]:
    """How many questions are the same in both runs."""
    ours, theirs = ({(e.group, e.seed): e for e in episodes(out)} for out in (alone, again))
    times = Counter((e.group, e.seed) for e in episodes(again))
    left, right = samples(alone), samples(again)
    return {
        "questions": len(ours),
        "asked_once": sum(times[key] == 1 for key in ours),
        "same_tokens": sum(
            key in theirs and np.array_equal(one.token_ids, theirs[key].token_ids)
            for key, one in ours.items()
        ),
        "same_scores": sum(alike(row, right.get(key, {})) for key, row in left.items()),
        "others": len(theirs.keys() - ours.keys()),
    }


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two samples have the same scores and counts, and the same confidence to rounding: the
    likelihood of a token depends in its last digits on what the engine computed beside it."""
    confidences = [row.get("confidence") or 0.0 for row in (one, other)]
    return timeless(one) == timeless(other) and math.isclose(*confidences, abs_tol=_ROUNDING)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A sample without its times and its confidence."""
    usage = {name: value for name, value in row.get("usage", {}).items() if "second" not in name}
    return {**row, "usage": usage, "confidence": None}


def main() -> None:
    """Print what came out as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--policy", default="vllm:default")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--longest", type=float, default=30, help="seconds to a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    alone, again = folder / "alone", folder / "killed"
    seconds = whole(command(arguments, alone), folder / "alone.log")
    chance, log, at = random.Random(arguments.seed), folder / "killed.log", []
    for _ in range(arguments.kills):
        found = killed(command(arguments, again), again, log, chance.uniform(0, arguments.longest))
        if found is None:
            break
        at.append(found)
    whole(command(arguments, again), log)
    told = {"kills": len(at), "episodes_at_kills": at, **compared(alone, again)}
    print(json.dumps({**told, "alone_s": round(seconds, 1), "folder": str(folder)}, indent=1))


if __name__ == "__main__":
    main()
