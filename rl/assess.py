"""From groups of trajectories to what each token weighs in the loss, by one recipe.

Rewards → credit → loss weights: for each turn, the sum over its tokens of weight x advantage is
its contribution, and the policy loss of the batch at ratio 1 is minus the sum of all contributions.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.task import Task
from agent.trajectory import Status, Trajectory, TrajectoryError
from kg.errors import TurnwiseError, UsageError
from rl.assessment_recipe import Assessment, CreditChoice
from rl.credit import Batch, Credit, CreditError, RewardPart, estimate
from rl.credit.group import Bools, Floats, Ints
from rl.gathered import gathered
from rl.reduction import token_weights
from rl.rewards import Combination, Need, RewardContext, RewardError, Values, require

if TYPE_CHECKING:
    from rl.scoring import Alias, Scorer

log = logging.getLogger(__name__)
#: Why a rollout that declined is left out, where the recipe says so.
DECLINED = "it declined, and the recipe compares only rollouts that did not"
_NO_GOLD = "its task has no gold answer to probe for"

Group = Sequence[Trajectory]
Probes = Mapping[str, npt.NDArray[np.float64]]
#: Predicted returns of groups: per trajectory float64[its tokens], before each sampled token.
Predict = Callable[[Sequence[Group]], Sequence[Floats]]


class Dropped(NamedTuple):
    """A trajectory that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Assessed:
    """A batch with all that led to its loss; n is the number of trajectories left.

    Attributes:
        spec: the recipe.
        groups: what could be assessed, group by group; in this order they are the batch's rows.
        batch: n rows; reward parts by label, weights of the recipe applied.
        credit: advantages per token, and the ledger.
        weights: per trajectory float64[its tokens]: factor of the token's loss, 0 if not sampled.
        context: what rewards read, with the probes that were computed.
        dropped: what was left out; the groups shrank by it before they were compared.
        faults: of rewards, each told once: exceptions that no reward may raise. Their trajectories are
            among the dropped, the tracebacks in the log.
    """

    spec: Assessment
    groups: tuple[tuple[Trajectory, ...], ...]
    batch: Batch
    credit: Credit
    weights: tuple[Floats, ...]
    context: RewardContext
    dropped: tuple[Dropped, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """One per row."""
        return tuple(trajectory for group in self.groups for trajectory in group)

    @cached_property
    def contributions(self) -> Floats:
        """float64[n, turns]: sum over a turn's tokens of weight x advantage; 0 after the last."""
        out = np.zeros(self.batch.turn_mask.shape)
        for i, row in enumerate(self.batch.spans):
            each = self.weights[i] * self.credit.advantages[i]
            for k, (start, stop) in enumerate(row):
                out[i, k] = each[start:stop].sum()
        return out

    @property
    def loss(self) -> float:
        """The policy loss of the batch at ratio 1, without clipping and anchors."""
        return -float(self.contributions.sum())


def by_group(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """Rollouts with the same `group` together, in order of appearance; without one each alone."""
    found: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        alone = "" if trajectory.group else trajectory.id
        found.setdefault((trajectory.group, alone), []).append(trajectory)
    return list(found.values())


def assess(
    groups: Iterable[Group],
    spec: Assessment,
    context: RewardContext | None = None,
    scorer: Scorer | None = None,
    values: Predict | None = None,
) -> Assessed:
    """Rewards, advantages and loss weights of one batch.

    A trajectory that cannot be assessed (failed for no fault of the policy, no tokens, no turns, a
    reward missing or not finite, or one whose code fails), or that the recipe leaves out, is named; the
    others go on, compared among themselves.

    Args:
        groups: each holds rollouts of one task.
        spec: the recipe.
        context: what rewards read; probes it does not have yet are computed, and what the batch itself
            tells (`rl.gathered`) is added.
        scorer: computes probes; needed where a reward reads them and `context` lacks some.
        values: predicts returns; needed where the estimator reads them.

    Raises:
        UsageError: a reward needs what neither context nor scorer provides.
        CreditError: an estimator that cannot work with the batch.
    """
    groups = list(groups)
    given = gathered(groups, spec.reward, context or RewardContext())
    _require(spec, given, scorer)
    dropped: list[Dropped] = []
    kept: list[tuple[Trajectory, ...]] = []
    rows: list[dict[str, Values]] = []
    seen: set[str] = set()
    faults: list[str] = []
    whole = [_fit(group, seen, dropped, spec.credit) for group in groups]
    if spec.needs_scorer and scorer is not None:
        whole, given = _probed(whole, given, scorer, spec, dropped)
    for group in whole:
        fit, parts = _rewarded(group, spec.reward, given, dropped, faults)
        if fit:
            kept.append(tuple(fit))
            rows.append(parts)
    batch = make_batch(kept, spec.reward, rows)
    if values is not None:
        batch = replace(batch, values=tuple(values(kept)))
    credit = estimate(spec.credit.estimator, batch, **spec.credit.options)
    weights = token_weights(batch.sampled, spec.loss.aggregation, spec.loss.constant)
    told = tuple(dict.fromkeys(faults))
    return Assessed(spec, tuple(kept), batch, credit, weights, given, tuple(dropped), told)


def make_batch(
    groups: Sequence[Group], reward: Combination, rewards: Sequence[Mapping[str, Values]]
) -> Batch:
    """The batch that credit is computed over.

    Args:
        groups: of trajectories with tokens.
        reward: says where each part is given.
        rewards: per group, label to float64[turns] for each trajectory.

    Raises:
        CreditError: replies that are out of order.
    """
    flat = [trajectory for group in groups for trajectory in group]
    lengths = np.array([len(trajectory.turns) for trajectory in flat], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    parts = []
    for label, one in reward.rewards.items():
        values, given = np.zeros(mask.shape), np.zeros(mask.shape, dtype=np.bool_)
        rows = [row for group in rewards for row in group[label]]
        for i, (trajectory, row) in enumerate(zip(flat, rows, strict=True)):
            values[i, : len(row)] = row
            given[i, : len(row)] = one.given(trajectory) | (row != 0)
        parts.append(RewardPart(label, values, given))
    return Batch(
        ids=tuple(trajectory.id for trajectory in flat),
        group=np.repeat(np.arange(len(groups)), [len(group) for group in groups]).astype(np.int64),
        turn_mask=mask,
        parts=tuple(parts),
        spans=tuple(np.array(_spans(t), dtype=np.int64).reshape(-1, 2) for t in flat),
        sampled=tuple(trajectory.sampled for trajectory in flat),
        anchors=_anchors(flat, mask),
    )


def _spans(trajectory: Trajectory) -> list[tuple[int, int]]:
    return [(turn.reply.start, turn.reply.stop) for turn in trajectory.turns]


def _anchors(trajectories: Sequence[Trajectory], mask: Bools) -> Ints:
    """int64[n, turns]: turns of one task whose policy calls saw the same tokens share a number."""
    numbers: dict[tuple[str, bytes], int] = {}
    out = np.zeros(mask.shape, dtype=np.int64)
    for i, trajectory in enumerate(trajectories):
        for k, turn in enumerate(trajectory.turns):
            state = (trajectory.task.id, trajectory.prompt_of(turn).tobytes())
            out[i, k] = numbers.setdefault(state, len(numbers))
    return out


def _require(spec: Assessment, context: RewardContext, scorer: Scorer | None) -> None:
    probes = {Need.PROBES, Need.STEP_PROBES}
    promised = context.promised | (probes if scorer is not None else frozenset())
    require(spec.reward.rewards.values(), replace(context, promised=promised))
    if Need.PROGRESS in spec.reward.needs and not context.has(Need.PROGRESS):
        raise UsageError("a reward's weight changes over the run, and no progress is given")


def _fit(
    group: Group, seen: set[str], dropped: list[Dropped], credit: CreditChoice
) -> list[Trajectory]:
    """Trajectories that a batch can hold and the recipe compares, each once."""
    fit = []
    for trajectory in group:
        twice = "it is in the batch already" if trajectory.id in seen else ""
        if reason := twice or unfit(trajectory, credit):
            dropped.append(Dropped(trajectory.id, reason))
        else:
            fit.append(trajectory)
        seen.add(trajectory.id)
    return fit


def unfit(trajectory: Trajectory, credit: CreditChoice) -> str:
    """Why a trajectory carries no loss, whatever its rewards; "" when it may."""
    if trajectory.status is Status.FAILED:
        return "the episode failed, for no fault of the policy"
    if not trajectory.has_tokens:
        return f"it has no token ids: the policy {trajectory.policy} gave none"
    if not trajectory.turns:
        return "it has no turns"
    if trajectory.abstained and credit.declined == "leave_out":
        return DECLINED
    nothing = {"": [[None] * len(trajectory.turns)]}
    try:
        Batch.ragged([0], nothing, spans=[_spans(trajectory)], sampled=[trajectory.sampled])
    except CreditError as error:
        return error.message
    return ""


def _probed(
    groups: Sequence[Group],
    context: RewardContext,
    scorer: Scorer,
    spec: Assessment,
    dropped: list[Dropped],
) -> tuple[list[list[Trajectory]], RewardContext]:
    """The trajectories of each group that have the probes of the recipe, after scoring those that had
    none."""
    from rl.probes import step_answers

    left = [list(group) for group in groups]
    if spec.needs_probes:
        score = partial(_scored, scorer, before=spec.gain.before, alias=spec.gain.alias)
        left, found = score(left, context.gold_logprobs, lambda task: task.answers, dropped)
        context = replace(context, gold_logprobs=found)
    if Need.STEP_PROBES in spec.reward.needs:
        score = partial(_scored, scorer, before=spec.step_gain.before, alias="all")
        left, found = score(left, context.step_logprobs, step_answers, dropped)
        context = replace(context, step_logprobs=found)
    return left, context


def _scored(
    scorer: Scorer,
    groups: Sequence[Group],
    had: Probes,
    answers_of: Callable[[Task], Sequence[str]],
    dropped: list[Dropped],
    *,
    before: str | None,
    alias: Alias,
) -> tuple[list[list[Trajectory]], Probes]:
    """The trajectories whose answers have scores, and all scores. A group played in two action formats
    is scored as two: each opens an answer, and chooses an alias, of its own."""
    from rl.probes import Wrapper, opening_of
    from rl.scoring import score_groups

    lacking = [bare for group in groups if (bare := [t for t in group if t.id not in had])]
    asked: dict[str, list[Group]] = defaultdict(list)  # by what opens an answer
    for group in (group for group in lacking if answers_of(group[0].task)):
        apart: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in group:
            apart[opening_of(trajectory) if before is None else before].append(trajectory)
        for opening, alike in apart.items():
            asked[opening].append(alike)
    found, problems = dict(had), list[str]()
    for opening, parts in asked.items():
        answers = [answers_of(part[0].task) for part in parts]
        for one in score_groups(scorer, parts, answers, Wrapper(opening), alias=alias):
            problems += one.problems
            found |= one.gold
    for trajectory in (t for group in lacking for t in group if t.id not in found):
        told = (line for line in problems if f"trajectory {trajectory.id} " in line)
        other = "it could not be scored" if answers_of(trajectory.task) else _NO_GOLD
        dropped.append(Dropped(trajectory.id, next(told, other)))
    return [[t for t in group if t.id in found] for group in groups], found


def _rewarded(
    group: Group,
    reward: Combination,
    context: RewardContext,
    dropped: list[Dropped],
    faults: list[str],
) -> tuple[list[Trajectory], dict[str, Values]]:
    """The trajectories that have rewards, and these; one that has none leaves the group first."""
    left = list(group)
    while left:
        try:
            parts = reward.weighted(left, context)
        except RewardError as error:
            why = {error.trajectory: error.message}
            if error.trajectory not in {t.id for t in left}:
                why = _reasons(left, reward, context, error, faults)
        except Exception as error:  # rewards are many hands' code: none may end the batch
            why = _reasons(left, reward, context, error, faults)
        else:
            why = dict.fromkeys(_infinite(left, parts), "its weighted reward is not finite")
            if not why:
                return left, parts
        dropped.extend(Dropped(t.id, why[t.id]) for t in left if t.id in why)
        left = [t for t in left if t.id not in why]
    return [], {}


def _reasons(
    group: Group, reward: Combination, context: RewardContext, error: Exception, faults: list[str]
) -> dict[str, str]:
    """By id, why trajectories have no reward: those that fail alone, else all.

    Raises:
        TurnwiseError, MemoryError: see `_told`.
    """
    alone = {t.id: why for t in group if (why := _refused([t], reward, context, faults))}
    if alone:
        return alone
    together = _refused(group, reward, context, faults) or _told(error, "", faults)
    return dict.fromkeys((t.id for t in group), together)


def _refused(group: Group, reward: Combination, context: RewardContext, faults: list[str]) -> str:
    """Why a part cannot be computed of these trajectories together; "" where all can."""
    for label, one in reward.rewards.items():
        try:
            one(group, context)
        except Exception as error:
            return _told(error, label, faults)
    return ""


def _told(error: Exception, label: str, faults: list[str]) -> str:
    """What an exception of a reward says; one that no reward may raise is put among the faults.

    Raises:
        TurnwiseError: it is no matter of a trajectory: a model is gone, an option is wrong.
        MemoryError: likewise.
    """
    if isinstance(error, RewardError | TrajectoryError):
        return error.message
    if isinstance(error, TurnwiseError | MemoryError):
        raise error
    which = f"the reward '{label}'" if label else "a reward"
    what = f"{which} failed, a fault of its code: {type(error).__name__}: {error}"
    if what not in faults:
        log.error("%s", what, exc_info=error)
        faults.append(what)
    return what


def _infinite(group: Group, parts: Mapping[str, Values]) -> set[str]:
    return {
        trajectory.id
        for values in parts.values()
        for trajectory, row in zip(group, values, strict=True)
        if not np.isfinite(row).all()
    }
