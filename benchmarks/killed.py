"""`agent eval` killed at random moments against the same run left alone.

Both ask the same questions with nothing from the cache. One is left alone; the other is killed (SIGKILL,
the whole process group) several times, each time at a random moment after its first new episode, and
begun again by the same command. Told are the episodes that were finished at each kill, and how many
questions came out the same: in every token, in everything that is scored (a confidence to its fourth
decimal), and stored exactly once. It exits with 1 unless all of them did. A folder of an earlier
measurement is compared anew with `--kills 0`: its finished runs ask nothing.

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
from contextlib import closing, contextmanager
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


@contextmanager
def begun(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, which ends with the block."""
    with log.open("ab") as lines:
        process = subprocess.Popen(words, stdout=lines, stderr=lines, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stored(out: Path) -> int:
    """Finished episodes in a run's folder; none before there is a store. Only reads."""
    file = (out / "trajectories.sqlite").resolve()
    if not file.is_file():
        return 0
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        if "episodes" not in tables:
            return 0
        return int(store.execute("SELECT count(*) FROM episodes").fetchone()[0])


def killed(words: Sequence[str], out: Path, log: Path, after: float) -> int | None:
    """Kill a run `after` seconds from its first new episode; gives its episodes, None if it ended.

    Raises:
        SystemExit: it failed by itself.
    """
    before, first = stored(out), None
    with begun(words, log) as process:
        while process.poll() is None:
            if first is None and stored(out) > before:
                first = time.monotonic()
            if first is not None and time.monotonic() >= first + after:
                os.killpg(process.pid, signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    return stored(out)
            time.sleep(0.05)
        _require(process, log)
    return None


def whole(words: Sequence[str], log: Path) -> float:
    """Seconds of the run to its end.

    Raises:
        SystemExit: it failed.
    """
    began = time.monotonic()
    with begun(words, log) as process:
        process.wait()
        _require(process, log)
    return time.monotonic() - began


def _require(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.returncode != 0:
        raise SystemExit(f"the run ended with exit code {process.returncode}: see {log}")


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
        "stored_once": sum(times[key] == 1 for key in ours),
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
    ours, theirs = one.get("confidence"), other.get("confidence")
    if ours is None or theirs is None:
        return timeless(one) == timeless(other) and ours is theirs
    return timeless(one) == timeless(other) and math.isclose(ours, theirs, abs_tol=_ROUNDING)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A sample without its times and its confidence."""
    usage = {name: value for name, value in row.get("usage", {}).items() if "second" not in name}
    return {**row, "usage": usage, "confidence": None}


def main() -> None:
    """Print what came out as JSON; exit with 1 where a question came out otherwise."""
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
    whole(command(arguments, alone), folder / "alone.log")
    chance, log, at = random.Random(arguments.seed), folder / "killed.log", []
    for _ in range(arguments.kills):
        count = killed(command(arguments, again), again, log, chance.uniform(0, arguments.longest))
        if count is None:
            break
        at.append(count)
    whole(command(arguments, again), log)
    found = compared(alone, again)
    told = {"kills": len(at), "episodes_at_kills": at, **found, "folder": str(folder)}
    print(json.dumps(told, indent=1))
    same = {found[name] for name in ("questions", "stored_once", "same_tokens", "same_scores")}
    sys.exit(len(same) > 1 or found["others"] > 0)


if __name__ == "__main__":
    main()
