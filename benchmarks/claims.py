"""What papers claim of turn-level rewards, tested at our scale.

Every arm is one of the shipped recipes with its own rewards and credit. All else is the same for all
arms of some worlds: the policy they start from, the questions and their order, rollouts, loss, optimizer
and number of updates. `outcome` is the baseline: exact match alone, GRPO, no reward for declining.

`plain`: worlds whose facts nobody knows, with questions that have no answer; three in ten first searches
go wrong on purpose. The policy is `micro-careless`, which guesses and gives up early.

- igpo (arXiv 2510.14967): accuracy, and rollouts until the baseline's last accuracy is reached
- reseek (arXiv 2510.00568): right answers after a misled first search
- abstain (after arXiv 2507.16951): invented answers to questions without one, and accuracy on the others
- combination (`igpo_reseek_ikea`): each of these, against each arm

`taught`: one world; half of its facts were put into the policy (`agent sft micro_taught`).

- ikea (arXiv 2505.07596): searches on known and unknown questions, and accuracy
- combination: the same

    python benchmarks/claims.py run [--arms plain/outcome plain/igpo] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/claims.py report

`run` makes the taught policy first where it is needed, skips what is finished and goes on with what is
not. Differences are paired by question and seed; their intervals draw both seeds and questions (two-way
bootstrap).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve()
sys.path[0] = str(HERE.parents[1])

from eval.stats import Interval, crossed  # noqa: E402

STEPS, TASKS, SIZE = 20, 16, 8
SMOOTH = 4  # steps whose mean is a point of a learning curve
BASELINE, COMBINATION = "outcome", "combination"

_OUTCOME = "rewards={answer: {reward: exact_match, options: {declined: 0.0}}}"
_BASELINE = ("search_r1", (_OUTCOME, "credit={estimator: grpo}"))
_COMBINATION = ("igpo_reseek_ikea", ("tasks.probe=2",))
#: Worlds and arm: recipe, and what differs from it besides `common`.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    f"plain/{BASELINE}": _BASELINE,
    "plain/igpo": ("igpo", ()),
    "plain/reseek": ("reseek", ("rewards.answer.options={declined: 0.0}",)),
    "plain/abstain": ("abstain", ()),
    f"plain/{COMBINATION}": _COMBINATION,
    f"taught/{BASELINE}": _BASELINE,
    "taught/ikea": ("ikea", ()),
    f"taught/{COMBINATION}": _COMBINATION,
}
#: What is asked of which worlds: of the tasks, and of the held-out ones.
_TAUGHT = "{count: 1, first_seed: 600001, entities: 120, questions: 1500, taught: 0.5}"
WORLDS: dict[str, tuple[str, str]] = {
    "plain": (
        "{worlds: {count: 4, first_seed: 700001, entities: 200, questions: 300}}",
        "{worlds: {count: 4, first_seed: 820001, entities: 200, questions: 300}, split: test}",
    ),
    "taught": (
        f"{{worlds: {_TAUGHT}, kinds: [1hop]}}",
        f"{{worlds: {_TAUGHT}, kinds: [1hop], split: test}}",
    ),
}


class Question(NamedTuple):
    """How one held-out question went.

    Attributes:
        key: of the question, the same in all runs.
        known: whether the policy was taught every fact that it needs.
        misled: whether its first search was to be; the same question was asked without that too.
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


def common(worlds: str, base: str, seed: int) -> list[str]:
    """What all arms of some worlds share, as `--set` takes it."""
    asked, held = WORLDS[worlds]
    misled = worlds == "plain"
    return [
        f"base={base}",
        f"seed={seed}",
        f"steps={STEPS}",
        f"tasks={asked}",
        f"rollouts.tasks={TASKS}",
        f"rollouts.size={SIZE}",
        f"rollouts.concurrency={TASKS * SIZE}",
        "rollouts.dtype=bfloat16",
        f"rollouts.misled={0.3 if misled else 0.0}",
        "rollouts.agent={search: {mode: lexical, k: 3}, budgets: {tool_calls: 4, turns: 9}, "
        "sampling: {max_tokens: 64}}",
        "loss={kind: ppo_clip, low: 0.2, high: 0.2, aggregation: token-mean}",
        "update.optimizer={lr: 1.0e-4, warmup: 0.05, final: 0.1}",
        "update.dtype=bfloat16",
        f"validation={{every: {STEPS}, temperature: 1.0, misled: {str(misled).lower()}, tasks: {held}}}",
        "checkpoints={every: 10, keep: 1}",
    ]


def waiting(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Commands of the runs that are not finished; all arms of a seed before the next seed."""
    agent = str(Path(sys.executable).with_name("agent"))
    for seed in seeds:
        for arm in arms:
            worlds, _, name = arm.partition("/")
            folder = out / worlds / f"{name}-{seed}"
            if _finished(folder):
                continue
            base = "micro-careless" if worlds == "plain" else str(taught(out).resolve())
            recipe, changes = ARMS[arm]
            changed = (*common(worlds, base, seed), *changes)
            sets = [part for change in changed for part in ("--set", change)]
            yield [agent, "train", recipe, "--out", str(folder), *sets]


def taught(out: Path) -> Path:
    """The policy that knows half a world's facts, fitted in two passes when it is not there."""
    agent, folders = str(Path(sys.executable).with_name("agent")), (out / "facts", out / "reading")
    changes = [
        [],
        [
            f"base={folders[0] / 'model'}",
            "optimizer.lr=4e-4",
            "optimizer.final=0",
            "demonstrations.lessons={closed: 0.6, direct: 0.2, searched: 0.2}",
            "demonstrations.worlds=[{count: 1, first_seed: 600001, entities: 120, questions: 200, "
            "taught: 0.5}, {count: 2, first_seed: 610001, entities: 120, questions: 150}]",
        ],
    ]
    for folder, changed in zip(folders, changes, strict=True):
        if not (folder / "report.json").is_file():
            sets = [part for change in changed for part in ("--set", change)]
            subprocess.run([agent, "sft", "micro_taught", "--out", str(folder), *sets], check=True)
    return folders[1] / "model"


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
            env = {**os.environ, "OMP_NUM_THREADS": threads, "VLLM_CPU_KVCACHE_SPACE": "1"}
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
    name, _, seed = folder.name.rpartition("-")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curve = tuple(float(row["right"]) for row in rows)
    facts = json.loads((folder / "validation" / f"step-{STEPS:05d}.json").read_text())
    # all that were to be misled, so that runs pair: whoever never searched was not
    astray = (facts.get("misled") or {}).get("questions", [])
    asked = [*facts["questions"], *({**row, "misled": True} for row in astray)]
    known = _known(folder)
    questions = tuple(_question(row, known) for row in asked)
    return Finished(f"{folder.parent.name}/{name}", int(seed), curve, questions)


def _known(folder: Path) -> set[str]:
    """Tasks of the run's held-out worlds all of whose facts were taught."""
    found = set()
    for path in (folder / "worlds").glob("*/tasks-test.jsonl"):
        for task in map(json.loads, path.read_text().splitlines()):
            if task["meta"].get("taught") and all(task["meta"]["taught"]):
                found.add(task["id"])
    return found


def _question(row: Mapping[str, Any], known: Collection[str]) -> Question:
    return Question(
        key=f"{row['set']}/{row['task']}",
        kind=row["kind"],
        answerable=row["answerable"],
        known=row["task"] in known,
        misled=row.get("misled", False),
        right=row["right"],
        searches=row["searches"],
        declined=row["declined"],
    )


Measure = Callable[[Question], float | None]


def right(question: Question) -> float | None:
    """Of questions that have an answer and were not misled."""
    return question.right if question.answerable and not question.misled else None


def recovered(question: Question) -> float | None:
    """Right after a misled first search, of questions that have an answer."""
    return question.right if question.answerable and question.misled else None


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
        pairs = [(q.key, measure(q)) for q in run.questions]  # a question was asked twice
        found = {key: value for key, value in pairs if value is not None}
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
            if not table(found, measure)[0].size:  # there is no such question in these worlds
                continue
            value = level(found, measure)
            facts["levels"][f"{arm} {name}"] = _plain(value)
            line = f"  {arm:<18} {_shown(name, value)}  seeds {len(found)}"
            for other in _others(arm, arms):
                gap = difference(found, arms[other], measure)
                facts["differences"][f"{arm} - {other} {name}"] = _plain(gap)
                line += f"   - {other.partition('/')[2]} {_shown(name, gap)}"
            print(line)
    print("\nrollouts until the baseline's last accuracy (baseline's own)")
    for arm, found in arms.items():
        for other in _others(arm, arms):
            if other.endswith(f"/{BASELINE}"):
                pairs = speed(found, arms[other])
                facts["speed"][arm] = pairs
                print(f"  {arm:<18} " + "   ".join(f"seed {s}: {a} ({b})" for s, a, b in pairs))
    return facts


def _others(arm: str, arms: Mapping[str, object]) -> list[str]:
    """What an arm is compared with: the baseline of its worlds; the combination with all of them."""
    worlds, _, name = arm.partition("/")
    beside = [other for other in arms if other != arm and other.startswith(f"{worlds}/")]
    if name == COMBINATION:
        return beside
    return [other for other in beside if other.endswith(f"/{BASELINE}")]


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
        sys.exit(run_all(list(waiting(args.runs, args.arms, args.seeds)), args.jobs) > 0)
    folders = [f for f in sorted(args.runs.glob("*/*-*")) if f.is_dir() and _finished(f)]
    facts = report([read_run(folder) for folder in folders])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
