"""An update step of our learner against TRL's `GRPOTrainer` on the same rollouts: equal numbers, then
time.

Three cases. `grouped`: rollouts that the policy plays on a fictional world with real search, 3 to 5
turns, in groups. `prompts`: rollouts of the same shapes in which a group shares its prompt and
nothing else (every later token is random): what is left of the gain where a policy never says the
same twice. `equal`: random tokens of one length, a prompt of its own for each, nothing to share.

Both sides: float32, AdamW with the same settings, clip 0.2, mean over all loss tokens, no KL, one
update a batch, no activation checkpointing, the same number of threads; sequences through
`rollout_func` with `env_mask` for observations. Fixed rewards, different in each group, so that no
group is silent. Ours runs under DeepSpeed (ZeRO 0); TRL plain, and with the same DeepSpeed
configuration as `trl-deepspeed`. TRL always computes the entropy of each prediction: `ours` does
too, `ours-no-entropy` does not. Under one DeepSpeed configuration are `ours` and `trl-deepspeed`;
against `trl` the framework counts too. See `learner_sides.py` for what counts as a step. Each side
runs in processes of its own, in the order A B C D D C B A. Unless told otherwise every case has 20 timed
steps of each side after 3 that are not, medians with interquartile ranges. The machine should do nothing
else:

    python benchmarks/learner.py [--policy micro] [--groups 4] [--cases grouped equal]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[0] = str(HERE.parents[1])

from agent.policies.catalog import resolve  # noqa: E402
from agent.policies.vllm_engine import unranked  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from benchmarks.learner_sides import SIDES, Case, Sample  # noqa: E402

#: What the numbers of both sides may differ by; `weights` are relative to how far they moved.
AIMS = {"logprobs": 1e-4, "loss": 1e-6, "cosine": 1e-6, "norm": 1e-5}
TURNS = range(3, 6)
#: What a side's speed is told against: TRL as it comes, and TRL under our DeepSpeed configuration.
SPEEDUPS = {"trl": "speedup", "trl-deepspeed": "speedup_deepspeed"}


# ---- the three cases -----------------------------------------------------------------------------


def recorded(args: argparse.Namespace) -> Case:
    """Groups of the policy's own rollouts; played once, then read again."""
    from agent.settings import isolated_settings
    from agent.store import TrajectoryStore
    from eval.fictional.make import make_world
    from rl.assess import by_group
    from rl.collect import CollectRequest, collect

    player = args.player or args.policy
    home = args.work / player.replace("/", "_").replace(":", "_")
    world = home / f"world-{args.world}"
    if not (world / "world.json").is_file():
        make_world(world, args.world, 200, 100)
    settings = isolated_settings(
        home=home,
        policy=player if args.transformers else f"vllm:{resolve(player, models())}",
        search={"mode": "lexical"},
        rule="soft",  # turns only append: one sequence a rollout, which is all that TRL knows
        sampling={"temperature": 1.0, "max_tokens": args.reply},
        budgets={"turns": TURNS.stop - 1},
    )
    request = CollectRequest(
        tasks=(str(world),), limit=4 * args.groups, group=args.size, concurrency=64
    )
    store = str(home / "rollouts.sqlite")
    collect(request, settings, store, lambda line: print(line, file=sys.stderr))
    with TrajectoryStore.open(store) as opened:
        found = [g for g in by_group(opened.query()) if _fits(g, args.size)]
    if len(found) < args.groups:
        raise SystemExit(f"only {len(found)} groups have {TURNS.start} to {TURNS.stop - 1} turns")
    chance = random.Random(0)
    return [[_sample(t, chance) for t in group] for group in found[: args.groups]]


def models() -> Path:
    return load_settings().models_dir


def _fits(group: Sequence[Any], size: int) -> bool:
    from rl.packing import rows

    return len(group) == size and all(len(t.turns) in TURNS and len(rows(t)) == 1 for t in group)


def _sample(trajectory: Any, chance: random.Random) -> Sample:
    from rl.packing import rows

    [row] = rows(trajectory)
    at = int(row.target.argmax())
    ids, mask = row.ids.tolist(), row.target.astype(int).tolist()
    return Sample(ids[:at], ids[at:], mask[at:], chance.gauss(0, 1))


def prompts_only(case: Case, vocabulary: int) -> Case:
    """The same shapes and prompts; every later token random, and no two of a group begin alike."""
    chance = random.Random(1)
    out = []
    for group in case:
        prompt = group[0].prompt
        first = chance.sample(range(vocabulary), len(group))
        ids = [
            [one, *chance.choices(range(vocabulary), k=len(sample.completion) - 1)]
            for one, sample in zip(first, group, strict=True)
        ]
        out.append(
            [s._replace(prompt=prompt, completion=c) for s, c in zip(group, ids, strict=True)]
        )
    return out


def equal_length(groups: int, size: int, length: int, vocabulary: int) -> Case:
    """Random tokens, a quarter of them prompt; no two sequences of the batch begin alike."""
    chance = random.Random(2)
    first = chance.sample(range(vocabulary), groups * size)
    long = length - length // 4

    def one(number: int) -> Sample:
        ids = [first[number], *chance.choices(range(vocabulary), k=length - 1)]
        return Sample(ids[:-long], ids[-long:], [1] * long, chance.gauss(0, 1))

    return [[one(g * size + n) for n in range(size)] for g in range(groups)]


def make_case(name: str, args: argparse.Namespace, vocabulary: int) -> Case:
    if name == "equal":
        return equal_length(args.groups, args.size, args.length, vocabulary)
    case = recorded(args)
    return case if name == "grouped" else prompts_only(case, vocabulary)


# ---- running and comparing -----------------------------------------------------------------------


def run_side(side: str, case: Path, out: Path, model: Path, *options: object) -> dict[str, Any]:
    """What one process reports.

    Raises:
        SystemExit: it failed; its messages are on stderr.
    """
    command = [sys.executable, str(HERE.with_name("learner_sides.py")), side, str(case), str(out)]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [*command, "--model", str(model), *map(str, options)],
        env={**unranked(os.environ), **quiet},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"{side} failed")
    return dict(json.loads(out.read_text()))


def compared(ours: Path, theirs: Path) -> dict[str, float]:
    """Largest differences of what two sides computed of one batch (`--check`).

    Gives the log-probabilities' (nats) and the loss's absolute difference; over parameters the largest
    1 - cosine and relative difference of norm of the gradient; and per number of steps how far apart the
    weights are, by norm, over how far they moved, and the largest difference of one weight.
    """
    import torch

    a, b = torch.load(ours), torch.load(theirs)
    assert a["logprobs"].keys() == b["logprobs"].keys()
    assert a["grads"].keys() == b["grads"].keys()
    pairs = [(torch.tensor(x), torch.tensor(b["logprobs"][n])) for n, x in a["logprobs"].items()]
    grads = [(a["grads"][n].double(), b["grads"][n].double()) for n in a["grads"]]
    cosines = [(x * y).sum() / (x.norm() * y.norm()) for x, y in grads]
    norms = [abs(x.norm() - y.norm()) / y.norm() for x, y in grads]
    found = {
        "logprobs": max(float((x - y).abs().max()) for x, y in pairs),
        "loss": abs(a["loss"] - b["loss"]),
        "cosine": float(1 - min(cosines)),
        "norm": float(max(norms)),
    }
    start = b["weights"][0]
    for step in [n for n in a["weights"] if n]:
        mine, other = a["weights"][step], b["weights"][step]
        apart = sum(float((mine[n] - other[n]).square().sum()) for n in other) ** 0.5
        moved = sum(float((other[n] - start[n]).square().sum()) for n in other) ** 0.5
        found[f"weights_{step}"] = apart / moved
        found[f"weight_{step}_max"] = max(float((mine[n] - other[n]).abs().max()) for n in other)
    return found


def failures(found: dict[str, float]) -> list[str]:
    """Names of the numbers that miss their aim."""
    return [name for name, aim in AIMS.items() if not found[name] <= aim]


def timed(case: Path, args: argparse.Namespace, options: Sequence[object]) -> dict[str, Any]:
    """Per side the steps of its two processes pooled, A B … B A."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    each = -(-args.steps // 2)
    for number, side in enumerate([*args.sides, *reversed(args.sides)]):
        out = args.work / f"{side}-{number}.json"
        more = ("--steps", each + args.warmup, "--warmup", args.warmup)
        runs[side].append(run_side(side, case, out, args.model, *options, *more))
        last = runs[side][-1]["times"]["step"]
        print(f"  {side:<16} {statistics.median(last):.3f} s a step", file=sys.stderr)
    return {side: summary(found) for side, found in runs.items()}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and interquartile range of each phase (s), memory (MiB), counts."""
    out: dict[str, Any] = {"steps": sum(len(run["times"]["step"]) for run in runs)}
    for phase in runs[0]["times"]:
        values = [value for run in runs for value in run["times"][phase]]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        out[phase] = middle
        out[f"{phase}_iqr"] = high - low
    out["peak_mib"] = max(run["peak_mib"] for run in runs)
    out["growth_mib"] = max(run["peak_mib"] - run["base_mib"] for run in runs)
    out["first_step"] = statistics.mean(run["first_step"] for run in runs)
    kept = ("processed", "padded", "passes", "shared", "threads")
    return out | {name: runs[0][name] for name in kept if name in runs[0]}


def compare(sides: dict[str, dict[str, Any]], case: dict[str, Any]) -> None:
    """Put into each side what its step gets done, and how many times faster it is than TRL's."""
    for one in sides.values():
        one["trained_per_s"] = case["trained"] / one["step"]
        one["processed_per_s"] = case["tokens"] / one["step"]
        for side, key in SPEEDUPS.items():
            if side in sides:
                one[key] = sides[side]["step"] / one["step"]


def facts_of(case: Case) -> dict[str, Any]:
    samples = [sample for group in case for sample in group]
    width = max(len(s.prompt) for s in samples) + max(len(s.completion) for s in samples)
    tokens = sum(len(s.ids) for s in samples)
    return {
        "rollouts": len(samples),
        "tokens": tokens,
        "trained": sum(sum(s.mask) for s in samples),
        "padding": round(1 - tokens / (width * len(samples)), 4),
    }


def report(name: str, row: dict[str, Any]) -> None:
    facts = ", ".join(f"{key} {value}" for key, value in row["case"].items())
    print(f"\n{name}: {facts}")
    print(
        "  equality: " + ", ".join(f"{key} {value:.1e}" for key, value in row["equality"].items())
    )
    if not row["sides"]:
        return
    phases = ("step", "prepare", "forward", "backward", "optimizer")
    told = [f"vs {side}" for side in SPEEDUPS]
    print("  " + " ".join(f"{w:>16}" for w in ("side", *phases, "iqr", "peak MiB", "grown", *told)))
    for side, one in row["sides"].items():
        times = [f"{one[phase]:.3f}" for phase in (*phases, "step_iqr")]
        sizes = [f"{one['peak_mib']:.0f}", f"{one['growth_mib']:.0f}"]
        ratios = [f"{one[key]:.2f}x" if key in one else "" for key in SPEEDUPS.values()]
        print("  " + " ".join(f"{cell:>16}" for cell in (side, *times, *sizes, *ratios)))


def measure(name: str, args: argparse.Namespace, vocabulary: int) -> dict[str, Any]:
    case = make_case(name, args, vocabulary)
    path = args.work / f"{name}.json"
    path.write_text(json.dumps(case))
    options = ("--threads", args.threads, "--rows", args.rows, "--tree-tokens", args.tree_tokens)
    checks = [args.work / f"check-{side}.json" for side in ("ours", "trl")]
    for side, out in zip(("ours", "trl"), checks, strict=True):
        run_side(side, path, out, args.model, *options, "--lr", args.lr, "--check")
    equality = compared(*(out.with_suffix(".pt") for out in checks))
    for out in checks:
        out.with_suffix(".pt").unlink()
    sides = {} if args.steps == 0 else timed(path, args, options)
    facts = facts_of(case)
    row = {
        "case": facts,
        "equality": equality,
        "missed": failures(equality),
        "sides": sides,
    }
    compare(sides, facts)
    report(name, row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="micro", help="whose weights are updated")
    parser.add_argument("--player", default="", help="who plays the rollouts, if another")
    parser.add_argument("--transformers", action="store_true", help="play without vLLM")
    parser.add_argument("--world", type=int, default=930_001, help="seed")
    parser.add_argument("--reply", type=int, default=128, help="tokens of a reply, at most")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--size", type=int, default=8, help="rollouts of a group")
    parser.add_argument("--length", type=int, default=512, help="of a sequence of `equal`")
    names = ("grouped", "prompts", "equal")
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--steps", type=int, default=20, help="timed ones; 0 for equality alone")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each process before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, default=8, help="rollouts of a pass of TRL")
    parser.add_argument("--tree-tokens", type=int, default=8192, help="of a pass of ours")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the equality steps")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out/learner"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from transformers import AutoConfig

    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.resolve()
    args.model = resolve(args.policy, models())
    vocabulary = int(AutoConfig.from_pretrained(args.model).vocab_size)
    rows = {name: measure(name, args, vocabulary) for name in args.cases}
    out = args.out or args.work.parent / f"learner-{args.policy.replace('/', '_')}.json"
    out.write_text(
        json.dumps({"policy": args.policy, "threads": args.threads, "cases": rows}, indent=1)
    )
    missed = {name: row["missed"] for name, row in rows.items() if row["missed"]}
    if missed:
        raise SystemExit(f"not equal within {AIMS}: {missed}")


if __name__ == "__main__":
    main()
