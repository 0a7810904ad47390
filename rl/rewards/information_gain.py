"""What a turn taught the policy about the gold answer (IGPO).

Source: IGPO (arXiv 2510.14967) and its released code. The gold answer is forced in the
context of every policy call; the reward of a turn is how much more likely its observation made the
answer: r_t = g(s_{t+1}) - g(s_t), with s_t the mean log-probability of the answer's tokens in what
turn t's call saw and g the identity (`log_probability`) or exp (`probability`). The model work is
done before: `RewardContext.gold_logprobs`. Normalising and discounting is the credit's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agent.trajectory import Trajectory
from rl.rewards.base import UNBOUNDED, Bools, Floats, Range, Reward, RewardError, Values, nothing
from rl.rewards.context import Need, RewardContext
from rl.rewards.registry import register

CURRICULUM = {"outcome": (0.5, 1.0), "information_gain": (1.0, 0.5)}
"""IGPO's optional curriculum: weights at the run's start and end, linear between. It acts before the
group is normalised: it cancels where each reward is divided by its own standard deviation."""

_ROUNDING = 1e-4  # a log-probability of a sure token may come out a hair above 0


class _Gain(Reward):
    """Gains in likelihood by each turn before the last.

    Attributes:
        form: `log_probability` (the final paper and the released script; unbounded) or `probability`
            (first version of the paper; a sum in -1..1).
        before: text that is forced before the answer; None for what opens one in the action format of
            the episode.
        only: tools whose turns may earn; empty for all turns.
        bound: values are cut to plus or minus this; 0 for no bound. The sum no longer telescopes.
    """

    form: Literal["log_probability", "probability"] = "log_probability"
    before: str | None = None
    only: tuple[str, ...] = ()
    bound: float = Field(0.0, ge=0)

    @property
    def range(self) -> Range:
        """-1..1 where the probabilities of all turns telescope."""
        whole = self.form == "probability" and not self.only and not self.bound
        return Range(-1.0, 1.0) if whole else UNBOUNDED

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns that may earn: never the last one, behind which there is nothing to probe."""
        names = [turn.action.name for turn in trajectory.turns]
        mask = np.array([not self.only or name in self.only for name in names], dtype=np.bool_)
        mask[-1:] = False
        return mask

    def _gains(self, trajectory: Trajectory, scores: Floats) -> Floats:
        row = nothing(trajectory)
        steps = np.diff(scores)
        row[: len(steps)] = steps
        if self.bound:
            row = np.clip(row, -self.bound, self.bound)
        if self.only:
            row[[turn.action.name not in self.only for turn in trajectory.turns]] = 0.0
        return row


def _table(
    trajectory: Trajectory, tables: Mapping[str, npt.NDArray[np.float64]], what: str
) -> Floats:
    """float64[answers, columns], checked; NaN in the rows of answers that were not probed.

    Raises:
        RewardError: no scores, too few or too many columns, or one that is no log-probability.
    """
    columns = len(trajectory.turns)
    if not trajectory.turns:
        return np.zeros((0, 0))
    if trajectory.id not in tables:
        raise RewardError(f"no log-probabilities of the {what}", trajectory.id)
    table = np.atleast_2d(np.asarray(tables[trajectory.id], dtype=np.float64))
    if table.ndim != 2 or table.shape[1] != columns or not len(table):
        shape = f"log-probabilities of the {what} of shape {table.shape}, not [answers, {columns}]"
        raise RewardError(shape, trajectory.id)
    wrong = ~np.isfinite(table) | (table > _ROUNDING)
    if _probed(table).any():
        wrong[~_probed(table)] = False
    if wrong.any():
        alias, turn = (int(i) for i in np.argwhere(wrong)[0])
        found = f"the {what}'s log-probability is {table[alias, turn]}"
        raise RewardError(found, trajectory.id, turn)
    return np.minimum(table, 0.0)


@register
class InformationGain(_Gain):
    """Gain in the gold answer's probability, or log-probability, by each turn before the answer.

    A forward difference: the sum over a trajectory telescopes to last score less first, so turns that
    add nothing earn nothing, however many there are. Other attributes: see `_Gain`.

    Attributes:
        alias: which gold answer is scored, one for the whole question so that differences compare:
            the one likeliest on the bare prompt, or the first (the released code).
    """

    name: ClassVar[str] = "information_gain"
    source: ClassVar[str] = "IGPO 2510.14967 and its released code"
    alias: Literal["likeliest", "first"] = "likeliest"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Scores of the gold answer at every turn."""
        return (Need.PROBES,)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Differences of the chosen alias's scores."""
        _, curves = self.curves(group, context)
        return [self._gains(t, curve) for t, curve in zip(group, curves, strict=True)]

    def curves(
        self, group: Sequence[Trajectory], context: RewardContext
    ) -> tuple[int, list[Floats]]:
        """How likely the gold answer was at each turn.

        Returns:
            Which of the gold answers is scored, and for each trajectory float64[columns]: its
            log-probability (nats a token), or probability by `form`, in what the turn's call saw.

        Raises:
            RewardError: scores are missing or are no log-probabilities.
        """
        tables = [_table(t, context.gold_logprobs, "gold answer") for t in group]
        row = self._alias([table for table in tables if table.size])
        chosen = [table[row] if table.size else np.zeros(0) for table in tables]
        return row, [np.exp(c) if self.form == "probability" else c for c in chosen]

    def _alias(self, tables: list[Floats]) -> int:
        """The row to use for every trajectory of the question, one that was probed for all of them.

        Raises:
            RewardError: there is none, or they are scored on different numbers of aliases.
        """
        if not tables:
            return 0
        counts = {len(table) for table in tables}
        if len(counts) > 1:
            raise RewardError(f"trajectories of one task are scored on {sorted(counts)} aliases")
        rows = np.flatnonzero(np.all([_probed(table) for table in tables], axis=0))
        if not len(rows):
            raise RewardError("trajectories of one task are scored on different aliases")
        if self.alias == "first":
            return int(rows[0])
        return int(rows[np.mean([table[rows, 0] for table in tables], axis=0).argmax()])


@register
class StepGain(_Gain):
    """Information gain about what the steps of a question find, on average over these.

    The gold answer of a chain becomes no likelier before the last hop is found; the answer of a step
    does when that step's passage is shown. A potential, as information gain is: the sum over a
    trajectory telescopes. A question without known steps has one, its first gold answer. Attributes: see
    `_Gain`.
    """

    name: ClassVar[str] = "step_gain"
    source: ClassVar[str] = "IGPO 2510.14967, of the answers of steps instead of the gold answer"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Scores of the answers of steps at every turn."""
        return (Need.STEP_PROBES,)

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Differences of the mean over steps.

        Raises:
            RewardError: scores are missing or are no log-probabilities.
        """
        return [self._gains(t, self._curve(t, context)) for t in group]

    def _curve(self, trajectory: Trajectory, context: RewardContext) -> Floats:
        table = _table(trajectory, context.step_logprobs, "step answer")
        if not table.size:
            return np.zeros(0)
        known = table[_probed(table)]
        return np.asarray((np.exp(known) if self.form == "probability" else known).mean(axis=0))


def _probed(table: Floats) -> Bools:
    """bool[aliases]: which were probed behind the bare prompt too, where there is more to probe."""
    behind = table[:, 1:] if table.shape[1] > 1 else table
    return np.asarray(np.isfinite(behind).any(axis=1), dtype=np.bool_)
