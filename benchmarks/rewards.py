"""What each reward says of real rollouts, and whether information gain finds the useful turns.

Collects groups of rollouts on a fictional world (or reads a store of them), scores them under the
policy that wrote them, and reports every reward that the world's tasks can feed: its spread, its
correlation with the final outcome and with the share of gold evidence found. Information gain, of the
gold answer and of the answers of steps, must be higher on search turns whose result holds gold evidence:
AUROC over turns, with an interval over questions.

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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.policies.catalog import resolve  # noqa: E402
from agent.settings import load_settings  # noqa: E402
from agent.store import Filter, TrajectoryStore  # noqa: E402
from agent.trajectory import Trajectory  # noqa: E402
from eval.fictional.make import make_world  # noqa: E402
from eval.metrics import contains  # noqa: E402
from eval.metrics.choice import roc_auc  # noqa: E402
from rl.collect import CollectRequest, collect  # noqa: E402
from rl.probes import step_answers  # noqa: E402
from rl.rewards import Need, RewardContext, RewardError, make_reward, reward_names  # noqa: E402
from rl.rewards.context import of_task, task_has  # noqa: E402
from rl.scoring import load_scorer, score_group  # noqa: E402
from tools.progress import bar  # noqa: E402

Groups = dict[str, list[Trajectory]]
DRAWS = 500
FORMS = ("log_probability", "probability")


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


def probed(groups: Groups, policy: str) -> RewardContext:
    """Scores of gold answers and of the answers of steps at every turn of every answerable group."""
    name = policy.rpartition(":")[2]
    scorer = load_scorer(resolve(name, load_settings().models_dir), name)
    gold: dict[str, npt.NDArray[np.float64]] = {}
    steps: dict[str, npt.NDArray[np.float64]] = {}
    for group in groups.values():
        if answers := group[0].task.answers[:3]:
            found = score_group(scorer, group, (*answers, *step_answers(group[0].task))).gold
            gold |= {id: table[: len(answers)] for id, table in found.items()}
            steps |= {id: table[len(answers) :] for id, table in found.items()}
    return RewardContext(gold_logprobs=gold, step_logprobs=steps)


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
        if {Need.PROBES, Need.STEP_PROBES} & {*reward.needs}:
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


class SearchTurn(NamedTuple):
    """A search turn with its gain, and what its result brought for the first time."""

    task: str
    kind: str
    gain: float
    evidence: bool
    answer: bool


def finds_evidence(groups: Groups, context: RewardContext, name: str, form: str) -> dict[str, Any]:
    """`gain_finds_evidence` of one reward."""
    reward = make_reward(name, {"form": form})
    scored = [group for group in groups.values() if group[0].id in context.gold_logprobs]
    gains = {
        t.id: row for group in scored for t, row in zip(group, reward(group, context), strict=True)
    }
    return gain_finds_evidence(groups, gains)


def gain_finds_evidence(
    groups: Groups, gains: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, Any]:
    """AUROC of the gain of search turns: for "brings gold evidence not shown before", in all and by
    kind of question, and for "brings a passage that names the answer"."""
    turns = [
        turn
        for group in groups.values()
        for t in group
        if t.id in gains and t.task.evidence
        for turn in _search_turns(t, gains[t.id])
    ]
    kinds = sorted({turn.kind for turn in turns})
    with_it = [turn.gain for turn in turns if turn.evidence]
    without = [turn.gain for turn in turns if not turn.evidence]
    return {
        "evidence": _auroc(turns, "evidence"),
        "answer": _auroc(turns, "answer"),
        "evidence_by_kind": {
            kind: _auroc([turn for turn in turns if turn.kind == kind], "evidence")
            for kind in kinds
        },
        "mean_gain_with": round(float(np.mean(with_it)), 3),
        "mean_gain_without": round(float(np.mean(without)), 3),
    }


def _search_turns(t: Trajectory, gains: npt.NDArray[np.float64]) -> list[SearchTurn]:
    seen: set[str] = set()
    out = []
    for turn, gain in zip(t.turns[:-1], gains, strict=False):
        if turn.observation is None or turn.action.name != "search":
            continue
        fresh = [s for s in turn.observation.sources if s.id not in seen]
        seen |= {source.id for source in fresh}
        out.append(
            SearchTurn(
                task=t.task.id,
                kind=t.task.kind,
                gain=float(gain),
                evidence=any(source.id in t.task.evidence for source in fresh),
                answer=any(contains(s.text, a) for s in fresh for a in t.task.answers),
            )
        )
    return out


def _auroc(turns: Sequence[SearchTurn], label: str) -> dict[str, Any]:
    """AUROC with a bootstrap interval over questions; None where there is one class only."""
    by_task: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for turn in turns:
        by_task[turn.task].append((getattr(turn, label), turn.gain))
    rng, names = np.random.default_rng(0), list(by_task)
    draws = []
    for _ in range(DRAWS):
        drawn = [
            pair for i in rng.integers(0, len(names), len(names)) for pair in by_task[names[i]]
        ]
        draws.append(_rank_auroc(drawn))
    value = _rank_auroc([pair for pairs in by_task.values() for pair in pairs])
    known = [draw for draw in draws if not math.isnan(draw)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return {
        "turns": len(turns),
        "positive": sum(getattr(turn, label) for turn in turns),
        "auroc": None if math.isnan(value) else round(value, 3),
        "interval": None if math.isnan(value) else [round(float(low), 3), round(float(high), 3)],
    }


def _rank_auroc(pairs: Sequence[tuple[bool, float]]) -> float:
    return roc_auc([holds for holds, _ in pairs], [gain for _, gain in pairs])


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
    context = replace(probed(groups, args.policy), confidence=confidence)
    values, left_out = rewards_of(groups, context)
    result = {
        "trajectories": len(by_id),
        "groups": len(groups),
        "rewards": table(values, by_id),
        "left_out": left_out,
        **{
            name: {form: finds_evidence(groups, context, name, form) for form in FORMS}
            for name in ("information_gain", "step_gain")
        },
    }
    print(json.dumps(result, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
