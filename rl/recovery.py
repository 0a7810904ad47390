"""Recovery after a first search that went wrong: what is asked of a run, and what is measured.

The claim under test is ReSeek's (arXiv 2510.00568): a policy that judges what it was shown searches
again instead of answering from it. Which episodes go wrong is drawn before they are played.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.misleading import TOOL, can_mislead
from agent.settings import Settings
from agent.trajectory import Trajectory
from eval.benchmarks import Benchmark
from eval.sample import Sample, score_one
from eval.stats import Interval, estimate, paired
from kg.errors import UsageError
from rl.curriculum import Drawn
from rl.rollouts import Stage, Told, measured


@dataclass(frozen=True)
class WhenMisled:
    """What the policy is worth on the tasks with gold evidence when the first search goes wrong.

    Attributes:
        right: share answered rightly, with its interval over questions.
        lost: the same less that of the clean episodes of these tasks, paired.
        misled: share of the episodes whose search did go wrong: the others never searched.
        recovered: share answered rightly of those, the answerable ones alone; None where there are
            none.
        searches: a question, on average.
        samples: one a question.
        shown: whether each of them was misled.
    """

    right: Interval
    lost: Interval
    misled: float
    recovered: Interval | None
    searches: float
    samples: tuple[Sample, ...]
    shown: tuple[bool, ...]


def recovery(
    clean: Sequence[Sample], samples: Sequence[Sample], episodes: Sequence[Trajectory]
) -> WhenMisled:
    """Figures of the episodes that were to be misled.

    Args:
        clean: samples of the same tasks in the same order, not misled.
        samples, episodes: the misled ones; at least one.
    """
    shown = tuple(one.misled for one in episodes)
    right = [sample.right for sample in samples]
    again = [s.right for s, was in zip(samples, shown, strict=True) if was and s.answerable]
    return WhenMisled(
        right=estimate(right),
        lost=paired(right, [sample.right for sample in clean]),
        misled=sum(shown) / len(shown),
        recovered=estimate(again) if again else None,
        searches=sum(s.usage.searches for s in samples) / len(samples),
        samples=tuple(samples),
        shown=shown,
    )


async def ask_misled(
    drawn: Sequence[Drawn],
    clean: Sequence[Sample],
    stage: Stage,
    step: int,
    seed: int,
    temperature: float,
    told: Told,
) -> tuple[WhenMisled, list[Trajectory]]:
    """Ask the tasks of a validation that have gold evidence again, misled.

    Args:
        drawn: all tasks of the validation; at least one has gold evidence.
        clean: their samples, in the same order; an episode has the seed of its clean one.
        stage: plays.
        step: updates done.
        seed, temperature: of the validation.
        told: gets episodes done and their total.

    Raises:
        PolicyUnavailableError: the policy failed in every episode.
    """
    plays = measured(drawn, seed, step, temperature, misled=True)
    places = [n for n, one in enumerate(drawn) if can_mislead(one.task)]
    done = await stage.play([plays[n] for n in places], told)
    samples = []
    for place, episode in zip(places, done, strict=True):
        source, task = drawn[place]
        samples.append(score_one(source.name, source.scorer, task, episode))
    return recovery([clean[n] for n in places], samples, done), done


def require_gold(key: str, sets: Sequence[Benchmark], settings: Settings) -> None:
    """Refuse to mislead where it cannot be done.

    Args:
        key: of the recipe that asks for it.
        sets: whose tasks are to be misled.
        settings: of their episodes.

    Raises:
        UsageError: a set has no task with gold evidence, or nothing searches.
    """
    if TOOL not in settings.tools:
        raise UsageError(
            f"{key}: the episodes have no tool '{TOOL}' that could go wrong",
            f"name it in rollouts.agent.tools, or leave {key} out",
        )
    for one in sets:
        if not any(can_mislead(task) for task in one.tasks):
            raise UsageError(
                f"{key}: no task of '{one.name}' has gold evidence: nothing is known to withhold",
                f"leave the set out, or {key}",
            )
