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

`hops`: questions of two to four hops alone, from the same policy, which hardly ever answers one: as
in the papers, an outcome seldom tells rollouts apart.

- igpo: as above
- step_gain: igpo, with information gain about the answers of a question's steps
- shaped: the outcome, and half of that gain in probabilities, with the credit `stopping`

`taught`: one world; half of its facts were put into the policy (`agent sft micro_taught`).

- ikea (arXiv 2505.07596): searches on known and unknown questions, and accuracy
- combination: the same

    python benchmarks/claims.py run [--arms plain/outcome plain/igpo] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/claims.py report

`run` makes the taught policy first where it is needed, skips what is finished and goes on with what is
not. Differences are paired by question and seed; an interval is the wider of a two-way bootstrap over
seeds and questions and Student's t over seeds. The combination also asks each training question once
closed-book; those samples are not in its count of rollouts. What is told of speed has no interval: a
point of a curve is a mean over some 60 questions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
sys.path[0] = str(HERE.parents[1])

from benchmarks.claims_runs import (  # noqa: E402
    BEFORE,
    MEASURES,
    SIZE,
    SMOOTH,
    STEPS,
    TASKS,
    Finished,
    difference,
    finished,
    level,
    read_run,
    require_one_type,
    speed,
)
from eval.stats import Interval  # noqa: E402
from rl.tripwires import Tripwires  # noqa: E402

BASELINE, COMBINATION = "outcome", "combination"

_OUTCOME = "rewards={answer: {reward: exact_match, options: {declined: 0.0}}}"
_BASELINE = ("search_r1", (_OUTCOME, "credit={estimator: grpo}"))
# own: each turn earns what it adds to the chance of the steps' answers, beside the outcome, by credit
# that stays unbiased where the policy chooses when to stop
_SHAPED = (
    "search_r1",
    (
        f"{_OUTCOME[:-1]}, gain: {{reward: step_gain, weight: 0.5, options: {{form: probability}}}}}}",
        "credit={estimator: stopping}",
    ),
)
_DECLINED = "rewards.answer.options.declined=0.0"  # as papers have it: only `abstain` pays for it
# its labels come from a closed-book sample of each training question, before the first step
_COMBINATION = ("igpo_reseek_ikea", ("tasks.probe=1", _DECLINED))
#: Worlds and arm: recipe, and what differs from it besides `common`.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    f"plain/{BASELINE}": _BASELINE,
    "plain/igpo": ("igpo", (_DECLINED,)),
    "plain/reseek": ("reseek", (_DECLINED,)),
    "plain/abstain": ("abstain", ()),
    f"plain/{COMBINATION}": _COMBINATION,
    f"hops/{BASELINE}": _BASELINE,
    "hops/igpo": ("igpo", (_DECLINED,)),
    "hops/step_gain": ("igpo", (_DECLINED, "rewards.gain.reward=step_gain")),
    "hops/shaped": _SHAPED,
    f"taught/{BASELINE}": _BASELINE,
    "taught/ikea": ("ikea", ()),
    f"taught/{COMBINATION}": _COMBINATION,
}
#: What is asked of which worlds: of the tasks, and of the held-out ones.
_HOPS = "kinds: [2hop, 3hop, 4hop]"
_TAUGHT = "{count: 1, first_seed: 600001, entities: 120, questions: 1500, taught: 0.5}"
WORLDS: dict[str, tuple[str, str]] = {
    "plain": (
        "{worlds: {count: 4, first_seed: 700001, entities: 200, questions: 300}}",
        "{worlds: {count: 4, first_seed: 820001, entities: 200, questions: 300}, split: test}",
    ),
    "hops": (
        f"{{worlds: {{count: 6, first_seed: 720001, entities: 200, questions: 300}}, {_HOPS}}}",
        f"{{worlds: {{count: 8, first_seed: 830001, entities: 200, questions: 300}}, {_HOPS}, "
        "split: test}",
    ),
    "taught": (
        f"{{worlds: {_TAUGHT}, kinds: [1hop]}}",
        f"{{worlds: {_TAUGHT}, kinds: [1hop], split: test}}",
    ),
}


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
        "rollouts.dtype=native",
        f"rollouts.misled={0.3 if misled else 0.0}",
        "rollouts.agent={search: {mode: lexical, k: 3}, budgets: {tool_calls: 4, turns: 9}, "
        "sampling: {max_tokens: 64}}",
        "loss={kind: ppo_clip, low: 0.2, high: 0.2, aggregation: token-mean}",
        "update.optimizer={lr: 1.0e-4, warmup: 0.05, final: 0.1}",
        "update.dtype=native",
        f"validation={{every: {STEPS}, temperature: 1.0, misled: {str(misled).lower()}, tasks: {held}}}",
        "checkpoints={every: 10, keep: 1}",
        # a run that is paused would be missing, and the strangest ones are paused
        *(f"tripwires.{wire}=null" for wire in Tripwires.model_fields),
    ]


def waiting(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Commands of the runs that are not finished; all arms of a seed before the next seed."""
    agent = str(Path(sys.executable).with_name("agent"))
    for seed in seeds:
        for arm in arms:
            worlds, _, name = arm.partition("/")
            folder = out / worlds / f"{name}-{seed}"
            if finished(folder):
                continue
            base = str(taught(out).resolve()) if worlds == "taught" else "micro-careless"
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
        if not finished(folder):
            sets = [part for change in changed for part in ("--set", change)]
            subprocess.run([agent, "sft", "micro_taught", "--out", str(folder), *sets], check=True)
            if not finished(folder):
                raise SystemExit(f"{folder} was interrupted")
    return folders[1] / "model"


def run_all(commands: Sequence[list[str]], jobs: int) -> int:
    """Run commands, `jobs` at a time, each with its share of the cores; gives how many failed.

    Ctrl-C starts no more and waits for those that run: each finishes its step and saves.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return sum(pool.map(lambda command: _run(command, env), commands))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _run(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a run failed; what it says goes into a file beside its folder."""
    folder = Path(command[command.index("--out") + 1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with folder.with_suffix(".log").open("a") as log:
        code = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    how = f"FAILED, see {log.name}" if code else "done" if finished(folder) else "interrupted"
    print(f"{folder}: {how} after {time.monotonic() - began:.0f} s", flush=True)
    return code != 0


# ---- reporting -----------------------------------------------------------------------------------


def report(runs: Sequence[Finished]) -> dict[str, Any]:
    """Print levels and differences; the same as JSON values."""
    names = (*(f"{worlds}/{BEFORE}" for worlds in WORLDS), *ARMS)
    arms = {arm: [run for run in runs if run.arm == arm] for arm in names}
    arms = {arm: found for arm, found in arms.items() if found}
    facts: dict[str, Any] = {"levels": {}, "seeds": {}, "differences": {}, "speed": {}}
    for name, measure in MEASURES.items():
        print(f"\n{name}")
        for arm, found in arms.items():
            value = level(found, measure)
            if value is None:  # there is no such question in these worlds
                continue
            facts["levels"][f"{arm} {name}"] = _plain(value)
            seeds = {run.seed for run in found}
            each = [level([run], measure) for run in sorted(found, key=lambda run: run.seed)]
            facts["seeds"][f"{arm} {name}"] = [one.mean if one else None for one in each]
            apart = ", ".join(_shown(name, one).partition("[")[0].strip() for one in each if one)
            line = f"  {arm:<18} {_shown(name, value)}  by seed {apart}, n {value.n}"
            for other in _others(arm, arms):
                gap = difference(found, arms[other], measure)
                if gap is None:
                    continue
                facts["differences"][f"{arm} - {other} {name}"] = _plain(gap)
                both = len(seeds & {run.seed for run in arms[other]})
                line += f"   - {other.partition('/')[2]} {_shown(name, gap)} ({both} seeds)"
            print(line)
    print(f"\nright verdicts in training, %: the first {SMOOTH} steps and the last")
    facts["verdicts"] = {}
    for arm, found in arms.items():
        judged = [run for run in found if np.isfinite(run.verdicts).any()]
        ends = [(run.verdicts[:SMOOTH], run.verdicts[-SMOOTH:]) for run in judged]
        if arm.endswith(f"/{BEFORE}") or not judged:
            continue
        told = [[round(100 * float(np.mean(end)), 1) for end in pair] for pair in ends]
        facts["verdicts"][arm] = told
        print(f"  {arm:<18} " + "   ".join(f"{first} {last}" for first, last in told))
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
    if name == BEFORE:
        return []
    untrained = f"{worlds}/{BEFORE}"
    beside = [one for one in arms if one.startswith(f"{worlds}/") and one not in (arm, untrained)]
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
    folders = [f for f in sorted(args.runs.glob("*/*-*")) if f.is_dir() and finished(f)]
    require_one_type(folders)
    first = [folder for folder in folders if folder.name.startswith(f"{BASELINE}-")]
    before = [read_run(folder, 0) for folder in first]
    facts = report([*before, *map(read_run, folders)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
