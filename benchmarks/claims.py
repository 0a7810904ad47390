"""What papers claim of turn-level rewards, tested at our scale.

Every arm is one of the shipped recipes with its own rewards and credit. All else is the same for all of
them: the policy they start from, the questions and their order, rollouts, loss, optimizer and number of
updates. They learn in one environment: fictional worlds of whose facts the policy has been taught a
share, with questions that have no answer, in which a share of first searches goes wrong on purpose.
`outcome` is the baseline: exact match alone, GRPO.

- igpo (arXiv 2510.14967): accuracy, and rollouts until the baseline's last accuracy is reached
- reseek (arXiv 2510.00568): right answers after a misled first search
- ikea (arXiv 2505.07596): searches on known and unknown questions, and accuracy
- abstain (after arXiv 2507.16951): invented answers to questions without one, and accuracy on the others
- combination (`igpo_reseek_ikea`): accuracy against each

    python benchmarks/claims.py run [--arms outcome igpo] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/claims.py report

`run` makes the taught policy first, skips what is finished and goes on with what is not. Differences
are paired by question and seed; their intervals draw both seeds and questions (two-way bootstrap).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve()
sys.path[0] = str(HERE.parents[1])

from eval.stats import Interval, crossed  # noqa: E402

STEPS, TASKS, SIZE = 24, 16, 8
SMOOTH = 4  # steps whose mean is a point of a learning curve
BASELINE, COMBINATION = "outcome", "combination"

_GRPO = "credit={estimator: grpo}"
_OUTCOME = "rewards={answer: {reward: exact_match, options: {declined: 0.0}}}"
#: Arm: recipe, and what differs from it besides `common`.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    BASELINE: ("search_r1", (_OUTCOME, _GRPO)),
    "igpo": ("igpo", ()),
    "reseek": ("reseek", ("rewards.answer.options={declined: 0.0}",)),
    "ikea": ("ikea", ()),
    "abstain": ("abstain", ()),
    COMBINATION: ("igpo_reseek_ikea", ()),
}


class Question(NamedTuple):
    """How one held-out question went.

    Attributes:
        key: of the question, the same in all runs.
        known: whether the policy was taught every fact that it needs.
        misled: whether its first search was.
    """

    key: str
    kind: str
    answerable: bool
    known: bool
    misled: bool
    right: float
    searches: float
    declined: float


class Finished(NamedTuple):
    """One run.

    Attributes:
        curve: share of right training rollouts of each step, on questions not trained on before.
        questions: of the last validation.
    """

    arm: str
    seed: int
    curve: tuple[float, ...]
    questions: tuple[Question, ...]


# ---- running -------------------------------------------------------------------------------------


def common(base: Path, seed: int) -> list[str]:
    """What all arms share, as `--set` takes it."""
    worlds = "{count: 4, first_seed: 700001, entities: 200, questions: 300, taught: 0.5}"
    return [
        f"base={base}",
        f"seed={seed}",
        f"steps={STEPS}",
        f"tasks={{worlds: {worlds}, probe: 0, balanced: false}}",
        f"rollouts.tasks={TASKS}",
        f"rollouts.size={SIZE}",
        f"rollouts.concurrency={TASKS * SIZE}",
        "rollouts.dtype=bfloat16",
        "rollouts.misled=0.3",
        "rollouts.agent={search: {mode: lexical, k: 3}, budgets: {tool_calls: 4}}",
        "loss={kind: ppo_clip, low: 0.2, high: 0.2, aggregation: token-mean}",
        "update.optimizer={lr: 4.0e-5, warmup: 0.05, final: 1.0}",
        "update.dtype=bfloat16",
        f"validation={{every: {STEPS}, temperature: 1.0, tasks: {{worlds: {worlds}, split: test}}}}",
        "validation.misled=true",
        "checkpoints={every: 8, keep: 1}",
    ]


def waiting(
    out: Path, arms: Sequence[str], seeds: Sequence[int], base: Path
) -> Iterator[list[str]]:
    """Commands of the runs that are not finished; all arms of a seed before the next seed."""
    for seed in seeds:
        for arm in arms:
            folder = out / f"{arm}-{seed}"
            if _finished(folder):
                continue
            recipe, changes = ARMS[arm]
            sets = [
                part for change in (*common(base, seed), *changes) for part in ("--set", change)
            ]
            yield [
                str(Path(sys.executable).with_name("agent")),
                "train",
                recipe,
                "--out",
                str(folder),
                *sets,
            ]


def _finished(folder: Path) -> bool:
    path = folder / "report.json"
    return path.is_file() and bool(json.loads(path.read_text())["finished"])


def run_all(commands: Sequence[list[str]], jobs: int) -> int:
    """Run commands, `jobs` at a time, each with its share of the cores; gives how many failed."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    left, running, failed = list(commands), [], 0
    while left or running:
        while left and len(running) < jobs:
            command = left.pop(0)
            folder = Path(command[command.index("--out") + 1])
            folder.parent.mkdir(parents=True, exist_ok=True)
            log = folder.with_suffix(".log").open("a")
            said = {"stdout": log, "stderr": subprocess.STDOUT}
            env = {**os.environ, "OMP_NUM_THREADS": threads}
            running.append(
                (folder.name, time.monotonic(), subprocess.Popen(command, env=env, **said))
            )
        time.sleep(1)
        for item in [item for item in running if item[2].poll() is not None]:
            running.remove(item)
            name, began, process = item
            failed += process.returncode != 0
            how = "done" if process.returncode == 0 else f"FAILED, see {name}.log"
            print(f"{name}: {how} after {time.monotonic() - began:.0f} s", flush=True)
    return failed


# ---- reading -------------------------------------------------------------------------------------


def read_run(folder: Path) -> Finished:
    """What a finished run left."""
    arm, _, seed = folder.name.rpartition("-")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curve = tuple(float(row["right"]) for row in rows)
    facts = json.loads((folder / "validation" / f"step-{STEPS:05d}.json").read_text())
    return Finished(arm, int(seed), curve, tuple(map(_question, facts["questions"])))


def _question(row: Mapping[str, Any]) -> Question:
    return Question(
        key=f"{row['set']}/{row['task']}",
        kind=row["kind"],
        answerable=row["answerable"],
        known=row["known"],
        misled=row["misled"],
        right=row["right"],
        searches=row["searches"],
        declined=row["declined"],
    )


Measure = Callable[[Question], float | None]


def right(question: Question) -> float | None:
    """Of questions that have an answer and were not misled."""
    return question.right if question.answerable and not question.misled else None


def recovered(question: Question) -> float | None:
    """Right after a misled first search."""
    return question.right if question.misled else None


def invented(question: Question) -> float | None:
    """An answer where there is none."""
    return None if question.answerable or question.misled else 1.0 - question.right


def searches_known(question: Question) -> float | None:
    return question.searches if question.known and not question.misled else None


def searches_unknown(question: Question) -> float | None:
    asked = question.answerable and not question.known and not question.misled
    return question.searches if asked else None


MEASURES: dict[str, Measure] = {
    "accuracy": right,
    "recovery": recovered,
    "invented": invented,
    "searches, known": searches_known,
    "searches, unknown": searches_unknown,
}


def table(runs: Sequence[Finished], measure: Measure) -> tuple[np.ndarray, list[int]]:
    """float[seeds, questions] of one arm, with the seeds in order."""
    rows = []
    for run in sorted(runs, key=lambda run: run.seed):
        values = {q.key: measure(q) for q in sorted(run.questions)}
        found = {key: value for key, value in values.items() if value is not None}
        rows.append([found[key] for key in sorted(found)])
    return np.array(rows), sorted(run.seed for run in runs)


def level(runs: Sequence[Finished], measure: Measure) -> Interval:
    """Mean over seeds and questions."""
    return crossed(table(runs, measure)[0])


def difference(ours: Sequence[Finished], theirs: Sequence[Finished], measure: Measure) -> Interval:
    """Paired by seed and question, over the seeds that both have."""
    seeds = {run.seed for run in ours} & {run.seed for run in theirs}
    a, b = ([run for run in runs if run.seed in seeds] for runs in (ours, theirs))
    return crossed(table(a, measure)[0] - table(b, measure)[0])


def reached(curve: Sequence[float], goal: float) -> int | None:
    """Rollouts until the mean of `SMOOTH` steps is at least `goal`; None when it never is."""
    for step in range(SMOOTH, len(curve) + 1):
        if np.mean(curve[step - SMOOTH : step]) >= goal:
            return step * TASKS * SIZE
    return None


def speed(
    ours: Sequence[Finished], theirs: Sequence[Finished]
) -> list[tuple[int, int | None, int]]:
    """Per seed: rollouts until the baseline's last smoothed accuracy, of ours and of the baseline."""
    out = []
    by_seed = {run.seed: run for run in theirs}
    for run in sorted(ours, key=lambda run: run.seed):
        if run.seed in by_seed:
            other = by_seed[run.seed].curve
            goal = float(np.mean(other[-SMOOTH:]))
            first = reached(other, goal)
            assert first is not None  # its last point is the goal
            out.append((run.seed, reached(run.curve, goal), first))
    return out


# ---- reporting -----------------------------------------------------------------------------------


def report(runs: Sequence[Finished]) -> dict[str, Any]:
    """Print levels and differences; the same as JSON values."""
    arms = {arm: [run for run in runs if run.arm == arm] for arm in ARMS}
    arms = {arm: found for arm, found in arms.items() if found}
    facts: dict[str, Any] = {"levels": {}, "differences": {}, "speed": {}}
    for name, measure in MEASURES.items():
        print(f"\n{name}")
        for arm, found in arms.items():
            value = level(found, measure)
            facts["levels"][f"{arm} {name}"] = _plain(value)
            line = f"  {arm:<12} {_shown(name, value)}  seeds {len(found)}"
            for other in _others(arm, arms):
                gap = difference(found, arms[other], measure)
                facts["differences"][f"{arm} - {other} {name}"] = _plain(gap)
                line += f"   - {other} {_shown(name, gap)}"
            print(line)
    print("\nrollouts until the baseline's last accuracy (baseline's own)")
    for arm, found in arms.items():
        if arm != BASELINE and BASELINE in arms:
            pairs = speed(found, arms[BASELINE])
            facts["speed"][arm] = pairs
            print(f"  {arm:<12} " + "   ".join(f"seed {s}: {a} ({b})" for s, a, b in pairs))
    return facts


def _others(arm: str, arms: Mapping[str, object]) -> list[str]:
    if arm == COMBINATION:
        return [other for other in arms if other != arm]
    return [BASELINE] if arm != BASELINE and BASELINE in arms else []


def _shown(name: str, value: Interval) -> str:
    if "searches" in name:
        return f"{value.mean:5.2f} [{value.low:5.2f}, {value.high:5.2f}]"
    return str(value)


def _plain(value: Interval) -> list[float]:
    return [value.n, value.mean, value.low, value.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/claims.json"))
    args = parser.parse_args()
    if args.what == "run":
        base = args.runs / "taught"
        if not (base / "model").is_dir():
            agent = str(Path(sys.executable).with_name("agent"))
            subprocess.run([agent, "sft", "micro_taught", "--out", str(base)], check=True)
        base = (base / "model").resolve()
        sys.exit(run_all(list(waiting(args.runs, args.arms, args.seeds, base)), args.jobs) > 0)
    folders = [f for f in sorted(args.runs.glob("*-*")) if f.is_dir() and _finished(f)]
    facts = report([read_run(folder) for folder in folders])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
