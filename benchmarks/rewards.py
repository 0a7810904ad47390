"""What each reward says of real rollouts, and whether information gain finds the useful turns.

Collects groups of rollouts on a fictional world (or reads a store of them), scores them under the
policy that wrote them, and reports every reward that the world's tasks can feed: its spread, its
correlation with the final outcome and with the share of gold evidence found. Information gain must be
higher on search turns whose result holds gold evidence: AUROC over turns, with an interval over
questions.

    python benchmarks/rewards.py [--policy vllm:micro] [--groups 125] [--group 8] [--seed 41]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.policies.catalog import resolve  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from agent.store import Filter, TrajectoryStore  # noqa: E402
from agent.trajectory import Trajectory  # noqa: E402
from eval.fictional.make import make_world  # noqa: E402
from eval.metrics.choice import roc_auc  # noqa: E402
from rl.collect import CollectRequest, collect  # noqa: E402
from rl.rewards import Need, RewardContext, RewardError, make_reward, reward_names  # noqa: E402
from rl.rewards.context import of_task, task_has  # noqa: E402
from rl.scoring import GroupScores, load_scorer, score_group  # noqa: E402
from tools.progress import bar  # noqa: E402

Groups = dict[str, list[Trajectory]]
DRAWS = 2000


def collected(args: argparse.Namespace, root: Path) -> Groups:
    """Groups of rollouts by their name."""
    settings = load_settings(
        policy=args.policy,
        home=root / "home",
        sampling={"temperature": 1.0},
        search={"mode": "lexical"},
    )
    make_world(root / "world", args.seed, 400, 4 * args.groups)
    request = CollectRequest(
        tasks=(str(root / "world"),),
        limit=args.groups,
        group=args.group,
        concurrency=64,
    )
    store = args.store or str(root / "store.sqlite")
    with bar(lines=True) as advance:
        print(collect(request, settings, store, print, advance), file=sys.stderr)
    groups: Groups = defaultdict(list)
    with TrajectoryStore.open(store) as opened:
        for trajectory in opened.query(Filter(newest_first=False)):
            groups[trajectory.group].append(trajectory)
    return groups


def scores_of(groups: Groups, policy: str) -> GroupScores:
    """Gold-answer scores of every turn of every answerable group."""
    name = policy.rpartition(":")[2]
    scorer = load_scorer(resolve(name, load_settings().models_dir), name)
    gold: dict[str, npt.NDArray[np.float64]] = {}
    for group in groups.values():
        if group[0].task.answers:
            gold |= score_group(scorer, group, group[0].task.answers[:3]).gold
    return GroupScores(gold=gold)


def rewards_of(groups: Groups, context: RewardContext) -> tuple[dict[str, Any], dict[str, str]]:
    """By reward, each trajectory's turn values; and why the others were left out."""
    values: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    left_out: dict[str, str] = {}
    for name in reward_names():
        if name == "combination":
            continue
        reward = make_reward(name, _OPTIONS.get(name))
        lacking = [n.value for n in reward.needs if not of_task(n) and not context.has(n)]
        fit = [
            g for g in groups.values() if all(task_has(n, g[0].task) for n in _task_needs(reward))
        ]
        if Need.PROBES in reward.needs:
            fit = [group for group in fit if group[0].id in context.gold_logprobs]
        if lacking or not fit:
            left_out[name] = ", ".join(lacking) or "no task of a world feeds it"
            continue
        try:
            values[name] = {
                t.id: row
                for group in fit
                for t, row in zip(group, reward(group, context), strict=True)
            }
        except RewardError as error:  # a reward of another kind of task, such as molecules
            left_out[name] = error.message
    return values, left_out


# gold evidence and the overlap of words stand for the models that are not here
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "judge_verdict": {"ideal": {"by": "evidence"}},
    "observation_utility": {"ideal": {"by": "evidence"}},
    "recovery": {"ideal": {"by": "evidence"}},
    "factuality": {"check": {"by": "overlap"}},
    "factual_reasoning": {"check": {"by": "overlap"}},
}


def _task_needs(reward: Any) -> list[Need]:
    return [need for need in reward.needs if of_task(need)]


def table(
    values: Mapping[str, Mapping[str, npt.NDArray[np.float64]]], by_id: Mapping[str, Trajectory]
) -> list[dict[str, Any]]:
    """A row a reward, over sums of trajectories."""
    outcome = {id: float(row.sum()) for id, row in values["exact_match"].items()}
    found = {id: float(row.sum()) for id, row in values["evidence_recall"].items()}
    rows = []
    for name, of in values.items():
        sums = np.array([row.sum() for row in of.values()])
        rows.append(
            {
                "reward": name,
                "n": len(sums),
                "mean": round(float(sums.mean()), 4),
                "sd": round(float(sums.std()), 4),
                "quantiles": [round(float(q), 3) for q in np.quantile(sums, [0, 0.1, 0.5, 0.9, 1])],
                "with_outcome": _correlation(of, outcome),
                "with_evidence": _correlation(
                    {id: row for id, row in of.items() if by_id[id].task.evidence}, found
                ),
            }
        )
    return rows


def _correlation(
    of: Mapping[str, npt.NDArray[np.float64]], other: Mapping[str, float]
) -> float | None:
    """Pearson's, over trajectories that have both; None where one does not vary."""
    shared = [id for id in of if id in other]
    a, b = np.array([of[id].sum() for id in shared]), np.array([other[id] for id in shared])
    if len(shared) < 3 or a.std() < 1e-12 or b.std() < 1e-12:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 3)


def gain_finds_evidence(
    groups: Groups, gains: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, Any]:
    """AUROC of the gain of search turns for "the result holds gold evidence not shown before"."""
    by_task: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for group in groups.values():
        for t in group:
            if t.id in gains and t.task.evidence:
                by_task[t.task.id] += _labelled(t, gains[t.id])
    turns = [pair for pairs in by_task.values() for pair in pairs]
    rng, names = np.random.default_rng(0), list(by_task)
    draws = []
    for _ in range(DRAWS):
        drawn = [by_task[names[i]] for i in rng.integers(0, len(names), len(names))]
        value = _auroc([pair for pairs in drawn for pair in pairs])
        if not math.isnan(value):
            draws.append(value)
    low, high = np.quantile(draws, [0.025, 0.975])
    with_it = [gain for holds, gain in turns if holds]
    without = [gain for holds, gain in turns if not holds]
    return {
        "turns": len(turns),
        "with_evidence": len(with_it),
        "auroc": round(_auroc(turns), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "mean_gain_with": round(float(np.mean(with_it)), 3),
        "mean_gain_without": round(float(np.mean(without)), 3),
    }


def _labelled(t: Trajectory, gains: npt.NDArray[np.float64]) -> list[tuple[bool, float]]:
    """Whether a search turn brought gold evidence for the first time, and its gain."""
    seen: set[str] = set()
    out = []
    for turn, gain in zip(t.turns[:-1], gains, strict=False):
        if turn.observation is None or turn.action.name != "search":
            continue
        ids = {source.id for source in turn.observation.sources}
        fresh = (ids & set(t.task.evidence)) - seen
        seen |= ids
        out.append((bool(fresh), float(gain)))
    return out


def _auroc(turns: Sequence[tuple[bool, float]]) -> float:
    return roc_auc([holds for holds, _ in turns], [gain for _, gain in turns])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="vllm:micro")
    parser.add_argument("--groups", type=int, default=125)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--store", default="", help="keep the rollouts, or go on with them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/rewards.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        groups = collected(args, Path(root))
    by_id = {t.id: t for group in groups.values() for t in group}
    confidence = {t.id: t.confidence for t in by_id.values() if t.confidence is not None}
    context = RewardContext(
        gold_logprobs=scores_of(groups, args.policy).gold, confidence=confidence
    )
    values, left_out = rewards_of(groups, context)
    result = {
        "trajectories": len(by_id),
        "groups": len(groups),
        "rewards": table(values, by_id),
        "left_out": left_out,
        "information_gain": {
            form: gain_finds_evidence(
                groups,
                {
                    t.id: row
                    for group in groups.values()
                    if group[0].id in context.gold_logprobs
                    for t, row in zip(
                        group,
                        make_reward("information_gain", {"form": form})(group, context),
                        strict=True,
                    )
                },
            )
            for form in ("log_probability", "probability")
        },
    }
    print(json.dumps(result, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
