"""What the rollouts of a batch and their tasks tell rewards: shares of votes, agreement, knowledge.

Nothing is sampled or scored here. What a caller's context has already stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agent.task import Task
from agent.trajectory import Status, Trajectory
from eval.metrics import normalise
from rl.rewards import Combination, Need, RewardContext
from rl.rewards.context import task_key
from rl.rewards.reading import final_answer
from rl.rewards.self_knowledge import SelfConsistency

Group = Sequence[Trajectory]


def gathered(groups: Sequence[Group], reward: Combination, context: RewardContext) -> RewardContext:
    """The context with what can be read off a batch.

    Args:
        groups: of a batch; failed episodes count for nothing.
        reward: what is not needed is not gathered.
        context: what is there already.

    Returns:
        With `vote_shares`, if there are several tasks to take them over; `confidence`, by `agreement`;
        and `knowledge`, from `Task.meta["knowledge"]`.
    """
    told = [[t for t in group if t.status is not Status.FAILED] for group in groups]
    tasks = {task_key(task): task for group in groups for task in (t.task for t in group)}
    known = {key: lines for key, task in tasks.items() if (lines := _knowledge(task))}
    context = replace(context, knowledge={**known, **context.knowledge})
    if Need.VOTES in reward.needs and not context.vote_shares and len(tasks) > 1:
        context = replace(context, vote_shares=vote_shares(told, reward))
    if Need.CONFIDENCE in reward.needs and not context.confidence:
        shares = {id: share for group in told for id, share in agreement(group).items()}
        promised = context.promised | {Need.CONFIDENCE}  # there may be groups of one alone
        context = replace(context, confidence=shares, promised=promised)
    return context


def vote_shares(groups: Sequence[Group], reward: Combination) -> dict[str, float]:
    """Label to its share among the readable analyses of all tasks, for each `self_consistency`."""
    shares: dict[str, float] = {}
    for one in reward.leaves:
        if isinstance(one, SelfConsistency):
            votes = Counter(v for group in groups for t in group if (v := one.vote(t)) is not None)
            total = max(1, votes.total())
            shares |= {label: votes[label] / total for label in one.labels}
    return shares


def agreement(group: Group) -> dict[str, float]:
    """Trajectory id to the share of the task's other rollouts that end alike, 0 to 1.

    Alike: the same normalised answer, or both declined, or both without an answer. A rollout that is
    alone has nobody to agree with and is left out.
    """
    ends = {t.id: (t.abstained, normalise(final_answer(t))) for t in group}
    counts = Counter(ends.values())
    others = len(ends) - 1
    return {id: (counts[end] - 1) / others for id, end in ends.items() if others}


def _knowledge(task: Task) -> tuple[str, ...]:
    """Statements that a task holds for its question; none where its `knowledge` is no list of texts."""
    lines = task.meta.get("knowledge")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return ()
    return tuple(lines)
