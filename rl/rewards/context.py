"""What rewards read besides the trajectories: computed before, handed over in one object.

A reward runs no model. Probabilities, labels and scorers come in a `RewardContext`; what is not there
yet but will be when the first group arrives is named in `promised`, so that `rl.rewards.missing` can
tell before a run starts what nobody provides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent.task import Task

Reranker: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]
"""(query, passages) to one relevance each, 0 to 1: logits go through a sigmoid first."""

Entailment: TypeAlias = Callable[[str, str], float]
"""(passage, statement) to the probability that the passage entails the statement."""

Judge: TypeAlias = Callable[[str, str], float]
"""(criterion, transcript) to how far the transcript meets the criterion, 0 to 1.

Models are called once an item: a slow one is asked in batches beforehand and looked up here."""

Facts: TypeAlias = Callable[[str], Sequence[str]]
"""Text to the atomic statements it makes."""

Edge: TypeAlias = tuple[str, str]

LABEL = "known"
"""Where a task's `meta` holds the label of `agent probe`."""


def task_key(task: Task) -> str:
    """What tables of a context call a task: sixteen hex digits of all that it holds.

    Ids are unique within their set alone, and many sets count from 0. Neither the id nor the label of
    `agent probe` is part of it: a task that is named or labelled anew is the same question.
    """
    meta = {name: value for name, value in task.meta.items() if name != LABEL}
    content = json.dumps({**task.to_dict(), "id": "", "meta": meta}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Need(StrEnum):
    """Something that a reward reads and that a run must provide."""

    ANSWERS = "gold answers"
    ANSWERABLE = "answerability labels"
    CHOICES = "choices"
    EVIDENCE = "gold evidence"
    PLAN = "gold plans"
    RUBRIC = "rubrics"
    MOLECULE = "molecules"
    PROPERTY = "molecule properties"
    CLAIMED = "claimed labels"
    PROBES = "information-gain probes"
    STEP_PROBES = "probes of step answers"
    ANCHOR = "anchor log-probabilities"
    KNOWN = "knowledge boundary labels"
    CONFIDENCE = "confidences"
    VOTES = "vote shares"
    PROGRESS = "training progress"
    EDGES = "reference edges"
    RERANKER = "reranker"
    ENTAILMENT = "entailment model"
    FACTS = "fact extractor"
    JUDGE = "judge policy"

    @property
    def remedy(self) -> str:
        """Who provides it: a field of the task, or a setting of a recipe and a field of the context."""
        return _REMEDIES[self]


_REMEDIES = {
    Need.ANSWERS: "Task.answers",
    Need.ANSWERABLE: "Task.answerable",
    Need.CHOICES: "Task.meta['choices'] and ['right']",
    Need.EVIDENCE: "Task.evidence",
    Need.PLAN: "Task.meta['plan']",
    Need.RUBRIC: "Task.meta['rubric']",
    Need.MOLECULE: "Task.meta['smiles']",
    Need.PROPERTY: "Task.meta['property']",
    Need.CLAIMED: "Task.meta['claimed']",
    Need.PROBES: "RewardContext.gold_logprobs",
    Need.STEP_PROBES: "RewardContext.step_logprobs",
    Need.ANCHOR: "loss.anchor or RewardContext.anchor_kl",
    Need.KNOWN: "tasks.probe, tasks from agent probe, or RewardContext.known",
    Need.CONFIDENCE: "RewardContext.confidence",
    Need.VOTES: "RewardContext.vote_shares",
    Need.PROGRESS: "RewardContext.progress",
    Need.EDGES: "RewardContext.edges",
    Need.RERANKER: "models.reranker or RewardContext.reranker",
    Need.ENTAILMENT: "models.entailment or RewardContext.entailment",
    Need.FACTS: "RewardContext.facts",
    Need.JUDGE: "models.judge or RewardContext.judge",
}


@dataclass(frozen=True)
class RewardContext:
    """What was computed before the rewards of a group.

    Attributes:
        gold_logprobs: trajectory id to float[aliases, turns] (or float[turns] for one alias): mean
            log-probability, nats a token, of each gold answer when it is forced in the context that
            the turn's policy call saw; column 0 is the bare prompt. Rows follow `Task.answers`; NaN
            behind column 0 where an answer was not probed.
        step_logprobs: likewise of the answers of the task's steps: float[steps, turns], in the order of
            `rl.probes.step_answers`.
        anchor_kl: trajectory id to float64[turns]: sum over a turn's sampled tokens of log p(policy) -
            log p(anchor), nats; 0 on a turn that a script wrote.
        known: `task_key` of a task to whether the policy answers it closed-book.
        confidence: trajectory id to a confidence in its final reply, 0 to 1. In an assessment the share
            of the task's other rollouts that end alike, unless given; see `rl.gathered`.
        vote_shares: label to its share among self-analyses of many tasks, 0 to 1. In an assessment
            those of the batch, unless given.
        progress: share of the run's steps that is done, 0 to 1; None when unknown.
        edges: reference edges of the graph, as pairs of node names.
        knowledge: `task_key` to passages that statements are checked against, besides retrieved ones. In
            an assessment those of `Task.meta["knowledge"]`, unless given.
        reranker, entailment, facts, judge: models as plain functions.
        promised: needs that will be filled in before the first group is rewarded.
    """

    gold_logprobs: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    step_logprobs: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    anchor_kl: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    known: Mapping[str, bool] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)
    vote_shares: Mapping[str, float] = field(default_factory=dict)
    progress: float | None = None
    edges: Collection[Edge] | None = None
    knowledge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reranker: Reranker | None = None
    entailment: Entailment | None = None
    facts: Facts | None = None
    judge: Judge | None = None
    promised: frozenset[Need] = frozenset()

    def has(self, need: Need) -> bool:
        """Whether the context, not the tasks, provides it or promises to."""
        return need in self.promised or _held(self, need)


def _held(context: RewardContext, need: Need) -> bool:
    optional = {
        Need.PROGRESS: context.progress,
        Need.EDGES: context.edges,
        Need.RERANKER: context.reranker,
        Need.ENTAILMENT: context.entailment,
        Need.FACTS: context.facts,
        Need.JUDGE: context.judge,
    }
    if need in optional:
        return optional[need] is not None
    tables: dict[Need, Mapping[str, object]] = {
        Need.PROBES: context.gold_logprobs,
        Need.STEP_PROBES: context.step_logprobs,
        Need.ANCHOR: context.anchor_kl,
        Need.KNOWN: context.known,
        Need.CONFIDENCE: context.confidence,
        Need.VOTES: context.vote_shares,
    }
    return bool(tables.get(need))


_OF_TASKS: dict[Need, Callable[[Task], bool]] = {
    Need.ANSWERS: lambda task: bool(task.answers) or task.answerable is False,
    Need.ANSWERABLE: lambda task: task.answerable is not None,
    Need.CHOICES: lambda task: {"choices", "right"} <= task.meta.keys(),
    Need.EVIDENCE: lambda task: bool(task.evidence) or task.answerable is False,
    Need.PLAN: lambda task: bool(task.meta.get("plan")),
    Need.RUBRIC: lambda task: bool(task.meta.get("rubric")),
    Need.MOLECULE: lambda task: bool(task.meta.get("smiles")),
    Need.PROPERTY: lambda task: bool(task.meta.get("property")),
    Need.CLAIMED: lambda task: bool(task.meta.get("claimed")),
}


def of_task(need: Need) -> bool:
    """Whether a need is met by tasks rather than by the context."""
    return need in _OF_TASKS


def task_has(need: Need, task: Task) -> bool:
    """Whether a task carries what a need of tasks asks for."""
    return _OF_TASKS[need](task)
