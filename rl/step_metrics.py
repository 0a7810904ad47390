"""What is measured of a training step: rewards, behaviour of the episodes, the update, where time went.

Means of rollouts go over questions first, so that no question counts more than another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agent.trajectory import Status, StopReason, Trajectory
from eval.metrics.usage import usage
from eval.sample import Sample, score_one
from eval.stats import Interval, estimate
from rl.assess import Assessed
from rl.credit.group import Floats, Ints
from rl.critic import CriticStats
from rl.recovery import WhenMisled
from rl.rewards.self_correction import right_verdicts
from rl.step import UpdateStats

Metrics = dict[str, float]


@dataclass(frozen=True)
class Validated:
    """What the policy is worth on tasks that it is not trained on.

    Attributes:
        step: updates done.
        right: share answered rightly, with its interval over questions; an episode that ended in an
            error is not right.
        kinds: the same by kind of question.
        searches, turns: a question, on average.
        wrong, declined: shares of answerable questions answered wrongly and declined.
        hallucinated: share of unanswerable questions that got an answer; NaN without any.
        samples: one a question.
        errors: episodes that ended in an error of a tool or the policy.
        without_errors: `right` over the other episodes; None when all ended in errors.
        misled: the same tasks when the first search goes wrong, where that is measured.
    """

    step: int
    right: Interval
    kinds: dict[str, Interval]
    searches: float
    turns: float
    wrong: float
    declined: float
    hallucinated: float
    samples: tuple[Sample, ...]
    errors: int = 0
    without_errors: Interval | None = None
    misled: WhenMisled | None = None


def validated(step: int, samples: Sequence[Sample]) -> Validated:
    """Figures of one validation."""
    kinds = sorted({sample.kind for sample in samples})
    asked = [sample for sample in samples if sample.answerable]
    unanswerable = [sample for sample in samples if not sample.answerable]
    declined = [float(s.abstained) for s in asked]
    wrong = [float(not (s.abstained or s.failed) and not s.right) for s in asked]
    whole = [s.right for s in samples if not s.failed]
    return Validated(
        step=step,
        right=estimate([s.right for s in samples]),
        kinds={kind: estimate([s.right for s in samples if s.kind == kind]) for kind in kinds},
        searches=_mean([s.usage.searches for s in samples]),
        turns=_mean([s.usage.turns for s in samples]),
        wrong=_mean(wrong),
        declined=_mean(declined),
        hallucinated=_mean([float(not s.failed) * (1.0 - s.right) for s in unanswerable]),
        samples=tuple(samples),
        errors=len(samples) - len(whole),
        without_errors=estimate(whole) if whole else None,
    )


def facts_of(found: Validated) -> dict[str, Any]:
    """A validation as JSON values; of each question only what pairs it with other validations."""
    facts = asdict(replace(found, samples=(), misled=None))
    del facts["samples"], facts["misled"]
    if found.misled is not None:
        facts["misled"] = _facts_of_misled(found.misled)
    return {**facts, "questions": [_question(sample) for sample in found.samples]}


def _facts_of_misled(found: WhenMisled) -> dict[str, Any]:
    """The same of misled episodes; each question tells whether its search did go wrong."""
    facts = asdict(replace(found, samples=(), shown=()))
    del facts["samples"], facts["shown"]
    pairs = zip(found.samples, found.shown, strict=True)
    return {**facts, "questions": [{**_question(one), "misled": was} for one, was in pairs]}


def _question(sample: Sample) -> dict[str, Any]:
    return {
        "set": sample.benchmark,
        "task": sample.task,
        "kind": sample.kind,
        "answerable": sample.answerable,
        "right": sample.right,
        "declined": sample.abstained,
        "searches": sample.usage.searches,
        "episode": sample.id,
    }


def of_rollouts(
    groups: Sequence[Sequence[Trajectory]],
    scorer_of: Callable[[Trajectory], tuple[str, str]],
    misled: bool = False,
) -> Metrics:
    """Behaviour of a step's rollouts.

    Args:
        groups: of one task each.
        scorer_of: a trajectory to the names of its set and of the set's scorer.
        misled: tell what share of them was `misled`, and what share of those `recovered`: was right all
            the same, of the answerable tasks; NaN where there are none.
    """

    def mean(read: Callable[[Trajectory], float]) -> float:
        return _mean([_mean([read(t) for t in group]) for group in groups if group])

    def right(trajectory: Trajectory) -> float:
        return score_one(*scorer_of(trajectory), trajectory.task, trajectory).right

    calls = [t.action.name for group in groups for one in group for t in one.turns if t.action.name]
    rights = [_mean([right(t) for t in group]) for group in groups if group]
    asked = [group[0].task.answerable is not False for group in groups if group]
    answerable = [value for value, has in zip(rights, asked, strict=True) if has]
    astray = [[t for t in g if t.misled and t.task.answerable is not False] for g in groups]
    recovered = _mean([_mean([right(t) for t in group]) for group in astray if group])
    more = {"misled": mean(lambda t: float(t.misled)), "recovered": recovered} if misled else {}
    if judged := [told for group in groups for told in map(right_verdicts, group) if told]:
        more["verdicts_right"] = _mean([_mean(list(map(float, told))) for told in judged])
    return {
        **more,
        "right": _mean(rights),
        "right_answerable": _mean(answerable),
        "solved_all": _mean([float(r == 1) for r in rights]),
        "solved_none": _mean([float(r == 0) for r in rights]),
        "abstained": mean(lambda t: float(t.abstained)),
        "failed": mean(lambda t: float(t.status is Status.FAILED)),
        "capped": mean(lambda t: float(t.stop_reason in _CAPS)),
        "turns": mean(lambda t: len(t.turns)),
        "searches": mean(lambda t: usage(t).searches),
        "invalid": mean(lambda t: usage(t).invalid),
        "repeated": mean(lambda t: usage(t).repeated),
        "tool_entropy": _entropy(calls),
        "sampled_entropy": _surprise([one for group in groups for one in group]),
        "sampled_tokens": float(sum(int(t.sampled.sum()) for g in groups for t in g)),
        "read_tokens": float(
            sum(turn.prompt_tokens for g in groups for t in g for turn in t.turns)
        ),
    }


def staleness(
    groups: Sequence[Sequence[Trajectory]], made: Mapping[str, int], updates: int
) -> float:
    """Updates between the weights that sampled a batch and those that learn from it: a mean over
    questions, NaN where no rollout tells its weights.

    Args:
        groups: of one task each; every trajectory names the version that sampled it.
        made: version of weights to the updates that made them.
        updates: that made the weights which learn.
    """

    def lag(group: Sequence[Trajectory]) -> list[float]:
        versions = (t.policy.rpartition("@")[2] for t in group)
        return [float(updates - made[version]) for version in versions if version in made]

    return _mean([_mean(lags) for lags in map(lag, groups) if lags])


_CAPS = (StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.MAX_SECONDS)


def of_credit(assessed: Assessed) -> Metrics:
    """Rewards and advantages of a step's batch."""
    n, nan = len(assessed.batch), float("nan")  # all may have been left out
    advantages = np.concatenate(
        [a[m] for a, m in zip(assessed.credit.advantages, assessed.batch.sampled, strict=True)]
        or [np.zeros(0)]
    )
    parts = {
        f"reward/{part.name}": float(np.where(part.given, part.values, 0.0).sum() / n) if n else nan
        for part in assessed.batch.parts
    }
    return {
        "reward": float(assessed.batch.outcomes.mean()) if n else nan,
        "reward_error": _clustered_error(assessed.batch.outcomes, assessed.batch.group),
        **parts,
        **_gold(assessed),
        "advantage_abs": float(np.abs(advantages).mean()) if len(advantages) else 0.0,
        "dropped": float(len(assessed.dropped) + len(assessed.credit.dropped)),
    }


def _clustered_error(values: Floats, clusters: Ints) -> float:
    """Standard error of a mean whose values come in clusters: rollouts of a task resemble each other.
    NaN for fewer than two clusters."""
    _, of = np.unique(clusters, return_inverse=True)
    count = int(of.max(initial=-1)) + 1
    if count < 2:
        return float("nan")
    sums = np.bincount(of, weights=values - values.mean())
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))


def _gold(assessed: Assessed) -> Metrics:
    """How likely the gold answer was in the end, mean log-probability in nats a token, where it was
    probed."""
    if not assessed.spec.needs_probes:
        return {}
    gain = assessed.spec.gain.model_copy(update={"form": "log_probability"})
    curves = [gain.curves(group, assessed.context)[1] for group in assessed.groups]
    return {"gold_logprob": _mean([_mean([c[-1] for c in of_group]) for of_group in curves])}


def of_updates(updates: Sequence[UpdateStats]) -> Metrics:
    """Figures of a step's optimizer steps: means, and the largest of what is a maximum."""
    out: Metrics = {"loss": _mean([one.loss for one in updates])}
    names = sorted({name for one in updates for name in one.figures})
    for name in names:
        values = [one.figures[name] for one in updates if name in one.figures]
        tops: Mapping[str, Callable[[list[float]], float]] = {"max": max, "min": min}
        out[name] = tops.get(name.rpartition("_")[2], _mean)(values)
    out["skipped"] = float(sum(not one.applied for one in updates))
    return out


def of_critic(taught: CriticStats) -> Metrics:
    """Figures of the critic, under `critic/`."""
    updates = of_updates(taught.updates)
    kept = {n: v for n, v in updates.items() if n in ("loss", "grad_norm", "lr", "skipped")}
    found = {"mse": taught.mse, "explained_variance": taught.explained_variance, **kept}
    return {f"critic/{name}": value for name, value in found.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _surprise(rollouts: Sequence[Trajectory]) -> float:
    """Mean of -log p(token) in nats over all sampled tokens, by the policy that sampled them; NaN where
    none has a log-probability.

    At temperature 1 without truncation, as training rollouts are drawn, its expectation is the policy's
    entropy in the contexts that it met. Drawn otherwise it is the cross-entropy of the draw to the
    policy, since recorded log-probabilities are always the policy's own.
    """
    found = [-t.logprobs[t.sampled & np.isfinite(t.logprobs)] for t in rollouts]
    total = sum(len(one) for one in found)
    return float(sum(one.sum(dtype=np.float64) for one in found) / total) if total else float("nan")


def _entropy(names: Sequence[str]) -> float:
    """Entropy in nats of which tool is called."""
    if not names:
        return 0.0
    _, counts = np.unique(np.array(names), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
