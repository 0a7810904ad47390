"""The receipt of a trajectory: every number between its rewards and its part of the loss.

Plain data, for a table in the terminal (`rl.receipt_table`), for JSON and for the trace viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.trajectory import Trajectory, Turn
from kg.errors import UsageError
from rl.assess import Assessed, Dropped
from rl.credit import TermReceipt
from rl.credit.group import Floats
from rl.rewards.aspects import weight_at


@dataclass(frozen=True)
class PartLine:
    """A reward of the recipe: its label, its registered name and its weight in this batch."""

    label: str
    reward: str
    weight: float


@dataclass(frozen=True)
class TurnLine:
    """One turn; each number follows from those before it.

    Attributes:
        turn: from 0.
        action: what the policy did.
        parts: rewards by label, weights applied; only those given at this turn.
        normalised: the same after normalisation.
        reward: the sum of `normalised`.
        terms: summands of the advantage: weight x (returns - baseline - center) / scale.
        advantage: their sum; the mean over the turn's tokens where these differ.
        tokens: sampled tokens that carry it.
        weight: of each of them in the loss; 0 where there is none.
        contribution: sum over the tokens of weight x advantage.
        gold: how likely the gold answer was in what this turn's call saw: log-probability (nats a
            token) or probability; None without probes.
        information_gain: `gold` at the next turn less `gold` here; None at the last turn.
    """

    turn: int
    action: str
    parts: dict[str, float]
    normalised: dict[str, float]
    reward: float
    terms: tuple[TermReceipt, ...]
    advantage: float
    tokens: int
    weight: float
    contribution: float
    gold: float | None = None
    information_gain: float | None = None


@dataclass(frozen=True)
class RolloutLine:
    """A trajectory of the batch in sums over its turns."""

    id: str
    status: str
    answer: str
    reward: float
    tokens: int
    contribution: float


@dataclass(frozen=True)
class Receipt:
    """Why one trajectory weighs in the loss as it does.

    Attributes:
        id, group, policy: of the trajectory.
        recipe, digest: name of the assessment, and of its content.
        parts: rewards of the recipe.
        estimator, options: of the credit, options as given.
        aggregation, constant: of the loss; the constant matters to `constant` alone.
        turns: the trajectory's.
        rollouts: all that was compared and summed; their contributions add up to -loss.
        loss: of the batch at ratio 1.
        dropped: rollouts that were left out.
        gold_answer: the answer that was probed for; "" without probes.
        gold_form: `log_probability` or `probability`.
        scored_by: the weights that computed the probes; "" without any.
        notes: what a reader should know.
    """

    id: str
    group: str
    policy: str
    recipe: str
    digest: str
    parts: tuple[PartLine, ...]
    estimator: str
    options: dict[str, Any]
    aggregation: str
    constant: float
    turns: tuple[TurnLine, ...]
    rollouts: tuple[RolloutLine, ...]
    loss: float
    dropped: tuple[Dropped, ...] = ()
    gold_answer: str = ""
    gold_form: str = ""
    scored_by: str = ""
    notes: tuple[str, ...] = ()

    @property
    def contribution(self) -> float:
        """Of the trajectory, all turns together."""
        return sum((line.contribution for line in self.turns), 0.0)


def make_receipt(
    assessed: Assessed,
    id: str,
    *,
    recipe: str = "",
    scored_by: str = "",
    notes: tuple[str, ...] = (),
) -> Receipt:
    """The receipt of one trajectory of a batch.

    Args:
        assessed: the batch.
        id: of the trajectory.
        recipe: the assessment's name, to show.
        scored_by: `name@version` that computed the probes, to show.
        notes: shown too.

    Raises:
        UsageError: the batch does not hold it; the reason, where it was left out.
    """
    ids = assessed.batch.ids
    if id not in ids:
        why = next((d.reason for d in assessed.dropped if d.id == id), "it is not in the batch")
        raise UsageError(f"the episode {id} cannot be assessed: {why}")
    row = ids.index(id)
    if lost := next((e for e in assessed.credit.dropped if e.trajectory == id), None):
        raise UsageError(f"the episode {id} cannot be assessed: {lost.message}")
    trajectory = assessed.trajectories[row]
    answer, curve = _curve(assessed, row)
    spec = assessed.spec
    return Receipt(
        id=id,
        group=trajectory.group,
        policy=trajectory.policy,
        recipe=recipe,
        digest=spec.digest,
        parts=tuple(_parts(assessed)),
        estimator=spec.credit.estimator,
        options=spec.credit.options,
        aggregation=spec.loss.aggregation,
        constant=spec.loss.constant,
        turns=tuple(_turn(assessed, row, k, curve) for k in range(len(trajectory.turns))),
        rollouts=tuple(_rollout(assessed, i) for i in range(len(ids))),
        loss=assessed.loss,
        dropped=assessed.dropped,
        gold_answer=answer,
        gold_form=spec.gain.form if answer else "",
        scored_by=scored_by if answer or spec.needs_scorer else "",
        notes=notes,
    )


def action_of(turn: Turn) -> str:
    """What a turn did, in a few words."""
    action = turn.action
    said = action.text or ", ".join(str(value) for value in action.arguments.values())
    name = action.name or action.kind.value
    return f"{name}: {' '.join(said.split())}" if said.strip() else name


def _parts(assessed: Assessed) -> list[PartLine]:
    progress = assessed.context.progress
    return [
        PartLine(label, part.reward, weight_at(part.weight, progress))
        for label, part in assessed.spec.reward.parts.items()
    ]


def _curve(assessed: Assessed, row: int) -> tuple[str, Floats | None]:
    """The probed gold answer, and float64[turns]: how likely it was; None without probes."""
    probes = assessed.context.gold_logprobs
    group = next(g for g in assessed.groups if any(t.id == assessed.batch.ids[row] for t in g))
    if not assessed.spec.needs_probes or any(t.id not in probes for t in group):
        return "", None
    alias, curves = assessed.spec.gain.curves(group, assessed.context)
    answers = group[0].task.answers
    place = [trajectory.id for trajectory in group].index(assessed.batch.ids[row])
    return (answers[alias] if alias < len(answers) else "?"), curves[place]


def _turn(assessed: Assessed, row: int, k: int, curve: Floats | None) -> TurnLine:
    found = assessed.credit.ledger.receipt(row, k)
    start, stop = (int(edge) for edge in assessed.batch.spans[row][k])
    gold = gain = None
    if curve is not None and k < len(curve):
        gold = float(curve[k])
        gain = float(curve[k + 1] - curve[k]) if k + 1 < len(curve) else None
    return TurnLine(
        turn=k,
        action=action_of(assessed.trajectories[row].turns[k]),
        parts=found.parts,
        normalised=found.normalised,
        reward=sum(found.normalised.values(), 0.0),
        terms=found.terms,
        advantage=found.advantage,
        tokens=found.tokens,
        weight=float(assessed.weights[row][start:stop].max(initial=0.0)),
        contribution=float(assessed.contributions[row, k]),
        gold=gold,
        information_gain=gain,
    )


def _rollout(assessed: Assessed, row: int) -> RolloutLine:
    trajectory: Trajectory = assessed.trajectories[row]
    return RolloutLine(
        trajectory.id,
        trajectory.status.value,
        trajectory.answer,
        float(assessed.batch.outcomes[row]),
        int(assessed.batch.tokens[row].sum()),
        float(assessed.contributions[row].sum()),
    )
