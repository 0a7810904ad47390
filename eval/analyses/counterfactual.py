"""What a turn of an episode was worth: the episode finished many times with and without it.

The value of an arm is the mean score of its continuations, a Monte Carlo estimate of the value of
the state after the turn, as VinePO (Kazemnejad et al. 2024, arXiv 2410.01679) makes for steps of
reasoning. The worth of what the turn brought is the difference of two values that share everything
before it: policy, tools, budgets, and the seed of each continuation.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from agent.episode import Episode
from agent.graph import Setup
from agent.rollout import rollout
from agent.trajectory import Status, StopReason, Trajectory
from eval.metrics import normalise
from eval.sample import score_one
from eval.stats import Interval, paired
from kg.errors import PolicyUnavailableError, ToolUnavailableError

ABSTAINED = "(abstained)"
NO_ANSWER = "(no answer)"
FACTUAL = "as it was"

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """Continuations from one variant of a turn.

    Attributes:
        name: of the variant.
        value: mean score, 0 to 1; None where the task has no gold answer.
        answers: how often each answer was given, most frequent first; equal after normalisation
            counts as equal.
        within_budget: continuations that answered or abstained before a budget was spent.
        tokens: mean number of tokens that the policy sampled after the turn.
        turns: mean number of turns after it.
    """

    name: str
    value: float | None
    answers: dict[str, int]
    within_budget: int
    tokens: float
    turns: float


@dataclass(frozen=True)
class Counterfactual:
    """What a turn was worth.

    Attributes:
        samples: continuations of each arm that were asked for.
        finished: seeds with which every arm was finished; all figures are over these.
        failed: continuations that a policy or tool failure ended, which say nothing of the turn.
        arms: the factual one first.
        worth: value of the factual arm less that of the other, -1 to 1; None without gold answers,
            with one arm, or with nothing finished.
        interval: its paired bootstrap interval (95 %) over seeds; None for fewer than two.
        interrupted: whether Ctrl-C ended it early.
    """

    samples: int
    finished: int
    failed: int
    arms: tuple[Arm, ...]
    worth: float | None
    interval: Interval | None
    interrupted: bool = False


async def compare_arms(
    arms: Mapping[str, Episode],
    setup: Setup,
    samples: int,
    seed: int = 0,
    scorer: str = "squad2",
    concurrency: int = 8,
    advance: Advance = lambda stage, done, total: None,
) -> Counterfactual:
    """Finish each arm `samples` times, with the same seeds in every arm.

    The seed of the episode itself is passed over: its own end, for which it may have been chosen,
    is not to be counted as a draw. Cancelling ends early, and gives what is finished.

    Args:
        arms: name to episode, at the end of the same turn; the factual one first.
        setup: with which they go on.
        samples: continuations an arm.
        seed: the first of the seeds.
        scorer: by name; see `eval.metrics.SCORERS`.
        concurrency: episodes at once.
        advance: gets a stage, finished continuations and their total.

    Raises:
        PolicyUnavailableError, ToolUnavailableError: every continuation failed.
    """
    own = next(iter(arms.values())).seed
    seeds = list(islice((one for one in count(seed) if one != own), samples))
    episodes = [
        replace(episode, seed=one, group=name) for one in seeds for name, episode in arms.items()
    ]
    found: dict[tuple[str, int], Trajectory] = {}
    interrupted = await _finish(episodes, setup, concurrency, found, advance)
    whole = {key: done for key, done in found.items() if done.status is not Status.FAILED}
    if found and not whole and not interrupted:
        raise _unavailable(next(iter(found.values())))
    kept = [one for one in seeds if all((name, one) in whole for name in arms)]
    groups = {name: [whole[name, one] for one in kept] for name in arms}
    turns = {name: len(episode.turns) for name, episode in arms.items()}
    result = estimate(groups, turns, scorer)
    return replace(result, samples=samples, failed=len(found) - len(whole), interrupted=interrupted)


async def _finish(
    episodes: Sequence[Episode],
    setup: Setup,
    concurrency: int,
    found: dict[tuple[str, int], Trajectory],
    advance: Advance,
) -> bool:
    """Collect the ends of episodes by group and seed; gives whether it was cancelled."""
    advance("finishing", 0, len(episodes))
    try:
        async for done in rollout(episodes, setup, concurrency):
            found[done.group, done.seed] = done
            advance("finishing", len(found), len(episodes))
    except asyncio.CancelledError:
        return True
    return False


def estimate(
    groups: Mapping[str, Sequence[Trajectory]], turns: Mapping[str, int], scorer: str = "squad2"
) -> Counterfactual:
    """The estimate from finished continuations. Pure.

    Args:
        groups: name of each arm to its continuations, in the order of the same seeds.
        turns: name of each arm to the number of turns that its continuations share.
        scorer: by name.

    Raises:
        ValueError: arms of different sizes.
    """
    scores = {
        name: [score_one("", scorer, done.task, done).right for done in group]
        for name, group in groups.items()
    }
    arms = tuple(_arm(name, groups[name], scores[name], turns[name]) for name in groups)
    size = len(next(iter(groups.values())))
    values = list(scores.values())
    known = len(values) == 2 and size > 0 and not any(map(math.isnan, (*values[0], *values[1])))
    interval = paired(values[0], values[1]) if known else None
    return Counterfactual(
        samples=size,
        finished=size,
        failed=0,
        arms=arms,
        worth=interval.mean if interval else None,
        interval=interval if size > 1 else None,
    )


def _arm(name: str, group: Sequence[Trajectory], scores: Sequence[float], turns: int) -> Arm:
    scored = bool(group) and not any(map(math.isnan, scores))
    settled = (Status.ANSWERED, Status.ABSTAINED)
    return Arm(
        name=name,
        value=_mean(scores) if scored else None,
        answers=_answers(group),
        within_budget=sum(done.status in settled for done in group),
        tokens=_mean([_sampled(done, turns) for done in group]),
        turns=_mean([len(done.turns) - turns for done in group]),
    )


def _answers(group: Sequence[Trajectory]) -> dict[str, int]:
    """Answers as first written, by how often they were given."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for done in group:
        said = done.answer.strip() or (ABSTAINED if done.status is Status.ABSTAINED else NO_ANSWER)
        key = said if not done.answer.strip() else normalise(said) or said
        first.setdefault(key, said)
        counts[key] += 1
    return {first[key]: times for key, times in counts.most_common()}


def _sampled(done: Trajectory, turns: int) -> int:
    """Tokens sampled after the first turns; where nobody counted, four characters are one."""
    return sum(turn.reply_tokens or len(turn.text) // 4 for turn in done.turns[turns:])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _unavailable(done: Trajectory) -> PolicyUnavailableError | ToolUnavailableError:
    kind = (
        ToolUnavailableError
        if done.stop_reason is StopReason.TOOL_UNAVAILABLE
        else PolicyUnavailableError
    )
    return kind(f"every continuation failed: {done.error}", "agent doctor")
