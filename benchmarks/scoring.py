"""What one-pass scoring of a group saves: log-probabilities of all sampled tokens and the gold answer's
probability at every turn, three ways over the same rollouts.

    tree            one pass over each group's token tree, behind what all groups begin with (what
                    turnwise does with the groups of a training step)
    one by one      a pass a trajectory for its log-probabilities, and a pass a turn for its probe
    padded batch    the same sequences as one padded batch

The rollouts are made here, by the real engine through the real graph and search, and their time stands
beside. All in one process, started with the libraries that `agent train` starts itself with, the ways
alternating, best of `--rounds`; the share of the rollouts' time is of the tree's mean, as they were made
once. Told is also the largest gap between the tree and the other ways. `--dtype` is that of the rollouts
and of all ways to score them, `--tree-alone` leaves the others out.

    python benchmarks/scoring.py [--policy default|micro] [--groups 6] [--engine vllm|transformers]
                                 [--dtype float32|bfloat16] [--tree-alone]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent import preload  # noqa: E402
from agent.policies.catalog import resolve  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.settings import Settings, load_settings  # noqa: E402
from agent.trajectory import Trajectory  # noqa: E402
from benchmarks.rollout import make_engine  # noqa: E402
from eval.benchmarks import Benchmark, DataFolder, load  # noqa: E402
from eval.fictional.make import make_world  # noqa: E402
from rl.collect import CollectRequest, make_plan  # noqa: E402
from rl.probes import Probe, make_probe, probed_context  # noqa: E402
from rl.scoring import ModelScorer, load_scorer, score_groups  # noqa: E402

GROUP = 8
Scores = dict[str, np.ndarray]


def roll_out(
    engine: Any, settings: Settings, found: Benchmark, groups: int, turns: tuple[int, int]
) -> tuple[list[list[Trajectory]], float, int]:
    """Groups whose mean number of turns lies in a range, seconds of all rollouts, and their number."""
    request = CollectRequest(tasks=("x",), group=GROUP)
    kept: list[list[Trajectory]] = []
    seconds, made = 0.0, 0
    for task in (task for task in found.tasks if task.answers):
        one = Benchmark(found.name, (task,), found.corpus)
        plan = make_plan(one, engine, request, settings, lambda line: None)

        async def play(plan: Any = plan) -> list[Trajectory]:
            return [t async for t in rollout(plan.episodes, plan.setup, GROUP)]

        began = time.perf_counter()
        group = asyncio.run(play())
        took = time.perf_counter() - began
        made += len(group)
        if turns[0] <= np.mean([len(t.turns) for t in group]) <= turns[1]:
            kept.append(group)
            seconds += took
        if len(kept) == groups:
            break
    return kept, seconds, made


def one_by_one(model: Any, group: Sequence[Trajectory], probe: Probe) -> Scores:
    """A pass a trajectory, and a pass a turn."""
    out: Scores = {}
    for trajectory in group:
        for number, (ids, wanted) in enumerate(sequences(trajectory, probe)):
            with torch.inference_mode():
                hidden = model.model(torch.from_numpy(ids)[None]).last_hidden_state[0]
                out[f"{trajectory.id}/{number}"] = read(model, hidden, ids, wanted)
    return out


def padded_batch(model: Any, group: Sequence[Trajectory], probe: Probe) -> Scores:
    """One batch of everything, padded to the longest."""
    named = {f"{t.id}/{n}": pair for t in group for n, pair in enumerate(sequences(t, probe))}
    longest = max(len(ids) for ids, _ in named.values())
    batch = torch.zeros(len(named), longest, dtype=torch.long)
    mask = torch.zeros(len(named), longest, dtype=torch.long)
    for row, (ids, _) in enumerate(named.values()):
        batch[row, : len(ids)], mask[row, : len(ids)] = torch.from_numpy(ids), 1
    with torch.inference_mode():
        hidden = model.model(batch, attention_mask=mask).last_hidden_state
        return {
            name: read(model, hidden[row], ids, wanted)
            for row, (name, (ids, wanted)) in enumerate(named.items())
        }


def sequences(trajectory: Trajectory, probe: Probe) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and wanted positions: the trajectory's rows first, then a probe a turn."""
    from rl.packing import rows

    found = [(row.ids, np.flatnonzero(row.target)) for row in rows(trajectory)]
    for number in range(len(trajectory.turns)):
        context = probed_context(trajectory, number)
        ids = np.concatenate([context, probe.ids])
        found.append((ids, len(context) + np.flatnonzero(probe.answer)))
    return found


def read(model: Any, hidden: torch.Tensor, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Log-probabilities at the wanted positions."""
    at = torch.from_numpy(wanted)
    logits = model.lm_head(hidden[at - 1]).float().log_softmax(-1)
    values: np.ndarray = logits[torch.arange(len(at)), torch.from_numpy(ids)[at]].numpy()
    return values


def by_tree(scorer: ModelScorer, groups: Sequence[Sequence[Trajectory]]) -> Scores:
    """The same numbers from the trees: sampled tokens of a trajectory, mean of the probe a turn."""
    out: Scores = {}
    for found in score_groups(scorer, groups, [[answer_of(group)] for group in groups]):
        out |= {f"{id} sampled": row[~np.isnan(row)] for id, row in found.logprobs.items()}
        out |= {f"{id} gold": table[0] for id, table in found.gold.items()}
    return out


def answer_of(group: Sequence[Trajectory]) -> str:
    """The gold answer that is probed."""
    return group[0].task.answers[0]


def largest_gap(tree: Scores, other: Scores, group: Sequence[Trajectory], probe: Probe) -> float:
    """Between what the tree and another way give."""
    gaps = []
    for t in group:
        count = len(sequences(t, probe)) - len(t.turns)
        sampled = np.concatenate([other[f"{t.id}/{n}"] for n in range(count)])
        gold = [other[f"{t.id}/{count + n}"].mean() for n in range(len(t.turns))]
        # rows of an omitted observation may hold a reply in another order than the trajectory
        gaps.append(np.abs(np.sort(tree[f"{t.id} sampled"]) - np.sort(sampled)).max())
        gaps.append(np.abs(tree[f"{t.id} gold"] - gold).max())
    return float(max(gaps))


def timed(work: Callable[[], Scores]) -> tuple[float, float, Scores]:
    """Seconds, peak of additional resident memory in MB, and the result."""
    process, stop, peak = psutil.Process(), threading.Event(), [0.0]
    start = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    return seconds, peak[0] / 2**20, result


def compare(
    groups: Sequence[Sequence[Trajectory]],
    folder: Path,
    name: str,
    rounds: int,
    dtype: str,
    alone: bool,
) -> dict[str, Any]:
    """Over all groups: seconds and memory a way, and the largest gap between results."""
    scorer = load_scorer(folder, name, dtype)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    total: dict[str, float] = {}
    mean = 0.0  # of the tree's rounds
    memory: dict[str, float] = {}
    gap = 0.0
    probed = [(group, make_probe(scorer.template, answer_of(group))) for group in groups]

    def each(way: Callable[[Any, Sequence[Trajectory], Probe], Scores]) -> Scores:
        found = [way(plain, group, probe) for group, probe in probed]
        return {name: row for scores in found for name, row in scores.items()}

    ways: dict[str, Callable[[], Scores]] = {
        "tree": lambda: by_tree(scorer, groups),
        "one_by_one": lambda: each(one_by_one),
        "padded_batch": lambda: each(padded_batch),
    }
    others = () if alone else tuple(ways)[1:]
    results: dict[str, Scores] = {}
    for _ in range(rounds):
        for way in ("tree", *others):
            seconds, peak, results[way] = timed(ways[way])
            total[way] = min(seconds, total.get(way, seconds))
            memory[way] = max(peak, memory.get(way, 0.0))
            mean += seconds / rounds if way == "tree" else 0.0
    for way in others:
        gap = max(gap, *(largest_gap(results["tree"], results[way], *pair) for pair in probed))
    scores = score_groups(scorer, groups, [[answer_of(group)] for group in groups])
    tokens = [sum(one.tokens for one in scores), sum(one.sequence_tokens for one in scores)]
    return {
        **{f"{way}_s": round(seconds, 3) for way, seconds in total.items()},
        "tree_mean_s": round(mean, 3),
        **{f"{way}_mb": round(peak) for way, peak in memory.items()},
        **{f"faster_than_{way}": round(total[way] / total["tree"], 2) for way in others},
        "tree_tokens": tokens[0],
        "sequence_tokens": tokens[1],
        **({} if alone else {"largest_gap": gap}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="default")
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--turns", type=float, nargs=2, default=[4.0, 6.0])
    parser.add_argument("--tree-alone", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/scoring.json"))
    args = parser.parse_args()
    preload.announce()
    preload.start_with(preload.ALLOCATOR, preload.OPENMP)
    settings = load_settings(
        policy=args.policy, sampling={"temperature": 1.0}, search={"mode": "lexical"}
    )
    folder = resolve(args.policy, settings.models_dir)
    with tempfile.TemporaryDirectory() as root:
        if args.policy == "micro":
            make_world(Path(root), 31, 300, 400)
        found = load(
            root if args.policy == "micro" else "library", DataFolder("", Path(root)), "train"
        )
        engine = make_engine(args.engine, folder, True, args.dtype)
        groups, seconds, made = roll_out(engine, settings, found, args.groups, tuple(args.turns))
        asyncio.run(engine.aclose())
    if not groups:
        raise SystemExit(
            f"no group of {made // GROUP} has {args.turns[0]} to {args.turns[1]} turns"
        )
    row = {
        "policy": args.policy,
        "dtype": args.dtype,
        "groups": len(groups),
        "turns": round(float(np.mean([len(t.turns) for g in groups for t in g])), 2),
        "rollout_s": round(seconds, 2),
        **compare(groups, folder, engine.name, args.rounds, args.dtype, args.tree_alone),
    }
    row["share_of_rollouts"] = round(row["tree_mean_s"] / row["rollout_s"], 3)
    print(json.dumps(row))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
