"""Tripwires: signs in a run's history that it goes wrong in a way its reward does not show.

Each wire is a section of the recipe that owns its thresholds and one pure function of the history. A
wire that is null is off. Knows nothing of the loop, of files and of what is done about a trip.

What is told against the start compares means of the first and of the last `window` steps, and waits
until there are twice as many; fixed bounds wait for one window. Numbers that are missing or not finite
are left out.
"""

from __future__ import annotations

import difflib
import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from pydantic import Field

from eval.stats import Interval, paired
from kg.errors import UsageError
from rl.recipe import Strict
from rl.run_history import History, Measured


@dataclass(frozen=True)
class Trip:
    """A wire that was tripped.

    Attributes:
        wire: its name in the recipe.
        said: what happened, with the numbers.
        look: what to look at.
        before, after: steps whose episodes are worth comparing.
    """

    wire: str
    said: str
    look: str
    before: int
    after: int


class Wire(Strict):
    """One wire.

    Attributes:
        window: steps that a mean is taken over.
    """

    window: int = Field(5, ge=2)

    @abstractmethod
    def found(self, seen: History) -> str:
        """What is wrong, with the numbers; empty when nothing is."""

    @property
    @abstractmethod
    def look(self) -> str:
        """What to look at."""

    def steps(self, seen: History) -> tuple[int, int]:
        """The steps to compare: the first and the last of all."""
        return int(seen.steps[0]["step"]), seen.step

    def ends(self, seen: History, name: str) -> tuple[float, float] | None:
        """Means of a metric over the first and the last window; None while they would overlap."""
        values = seen.values(name)
        if len(values) < 2 * self.window:
            return None
        return fmean(values[: self.window]), fmean(values[-self.window :])


class RewardWithoutValidation(Wire):
    """The reward goes up while the validation falls: what is rewarded is not what is wanted.

    Looked at after every validation. The last `patience` validations must each lie below the best one
    before them by `fall` or more, with a 95 % interval of the paired difference that excludes 0. The
    reward of the last `window` steps must lie above that of as many steps (fewer at the start) up to
    the one whose rollouts the weights of the best validation drew, which is the step after it, by more
    than twice the standard error of the difference. The error is that of each step's rollouts, clustered
    by task (`reward_error`): steps that differ since the policy changes tell no error, and a policy
    that is ruined within two steps would hide behind them. Where a step does not tell it (one of a
    single task) the spread between the steps has to do.

    Attributes:
        fall: of the share of questions answered rightly.
        patience: validations in a row.
    """

    window: int = Field(3, ge=2)
    fall: float = Field(0.03, gt=0, lt=1)
    patience: int = Field(2, ge=1)

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        best, late = self._best(seen), seen.validations[-self.patience :]
        if best is None or late[-1].step != seen.step:
            return ""
        differences = [difference(one, best) for one in late]
        rise = self._rise(seen, best.step)
        if rise is None or any(d.mean > -self.fall or d.high >= 0 for d in differences):
            return ""
        last = late[-1]
        return (
            f"the reward rose from {rise[0]:.3f} to {rise[1]:.3f} while the validation fell from "
            f"{100 * best.right.mean:.1f} % right at step {best.step} to {100 * last.right.mean:.1f} % "
            f"at step {last.step} (difference {str(differences[-1]).strip()} over "
            f"{last.right.n} questions)"
        )

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return (
            "questions that were right and are wrong now: what does the policy do to be rewarded?"
        )

    def steps(self, seen: History) -> tuple[int, int]:
        """The best validation and the last one."""
        best = self._best(seen)
        return (best.step if best else 0), seen.step

    def _best(self, seen: History) -> Measured | None:
        """The best validation before the last `patience` ones."""
        earlier = seen.validations[: -self.patience]
        return max(earlier, key=lambda one: one.right.mean, default=None)

    def _rise(self, seen: History, step: int) -> tuple[float, float] | None:
        """Mean rewards around the best validation and now; None unless they clearly rise."""
        rewards = [
            (one["step"], one["reward"], one.get("reward_error", math.nan))
            for one in seen.steps
            if math.isfinite(one.get("reward", math.nan))
        ]
        told = all(math.isfinite(error) for _, _, error in rewards)
        until = sum(number <= step + 1 for number, _, _ in rewards)
        until = max(until, 1 if told else self.window)  # one step has no spread
        old, new = rewards[:until][-self.window :], rewards[until:][-self.window :]
        if len(new) < self.window:
            return None
        (before, low), (after, high) = _mean_and_error(old), _mean_and_error(new)
        return (before, after) if after - before > 2 * math.hypot(low, high) else None


def _mean_and_error(rewards: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Mean of steps' rewards and its standard error, from (step, reward, its error)."""
    values, errors = [reward for _, reward, _ in rewards], [error for _, _, error in rewards]
    if all(map(math.isfinite, errors)):
        return fmean(values), math.hypot(*errors) / len(errors)
    return fmean(values), math.sqrt(variance(values) / len(values))


def difference(one: Measured, other: Measured) -> Interval:
    """Right answers of `one` less those of `other`, paired by question with its 95 % interval; where
    the questions are not known, an interval as wide as both together."""
    both = sorted(one.questions.keys() & other.questions.keys())
    if both:
        return paired(
            [one.questions[name].right for name in both],
            [other.questions[name].right for name in both],
        )
    a, b = one.right, other.right
    return Interval(a.mean - b.mean, a.low - b.high, a.high - b.low, min(a.n, b.n))


class Collapse(Wire):
    """A metric falls to a small share of what it began with.

    Attributes:
        share: of the first window's mean.
        least: a first mean below this had nothing to lose.
    """

    share: float = Field(0.1, ge=0, lt=1)
    least: float = Field(0.0, ge=0)

    @property
    @abstractmethod
    def metric(self) -> tuple[str, str]:
        """Name of the metric, and in words."""

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        name, words = self.metric
        ends = self.ends(seen, name)
        if ends is None or ends[0] <= self.least or ends[1] >= self.share * ends[0]:
            return ""
        return (
            f"{words} fell from {ends[0]:.3g} to {ends[1]:.3g}, below {self.share:g} of its start"
        )


class ToolEntropy(Collapse):
    """The policy calls ever the same tool, or none: entropy (nats) of which tool is called collapses."""

    share: float = Field(0.2, ge=0, lt=1)
    least: float = Field(0.1, ge=0)

    @property
    def metric(self) -> tuple[str, str]:
        """See `Collapse.metric`."""
        return "tool_entropy", "the entropy of tool calls"

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return "which tool is left, and whether one reward part pays for it or against the others"


class Entropy(Collapse):
    """The policy's entropy (nats a token) collapses: rollouts of a group become copies of each other.

    Read from the sampled tokens of all rollouts: there in every run, also when no group is left that a
    pass would compute the exact entropy of.
    """

    share: float = Field(0.05, ge=0, lt=1)
    least: float = Field(0.01, ge=0)

    @property
    def metric(self) -> tuple[str, str]:
        """See `Collapse.metric`."""
        return "sampled_entropy", "the policy's entropy"

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return (
            "whether rollouts of a task still differ (the metric advantage_abs); lower the rate, or "
            "anchor"
        )


class Gap(Wire):
    """The engine's log-probabilities and the learner's part: too far, or ever farther.

    Attributes:
        most: mean gap of a token in nats, over the last window.
        growth: times the first window's mean that it may become.
        least: nats; a smaller gap may grow.
    """

    most: float = Field(0.1, gt=0)
    growth: float = Field(10.0, gt=1)
    least: float = Field(0.01, ge=0)

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        values = seen.values("gap_mean")[-self.window :]
        now = fmean(values) if len(values) == self.window else 0.0
        if now > self.most:
            return f"the log-probability gap is {now:.3g} nats a token, above {self.most:g}"
        ends = self.ends(seen, "gap_mean")
        if ends is None or now <= self.least or now <= self.growth * ends[0]:
            return ""
        return (
            f"the log-probability gap grew from {ends[0]:.3g} to {now:.3g} nats a token, above "
            f"{self.growth:g} times its start"
        )

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return (
            "sync_gap (weights), gap_max (single tokens), the engine's dtype against the learner's"
        )


class Capped(Wire):
    """Episodes drift to their caps of turns, tokens or time instead of ending in an answer.

    Attributes:
        most: share of rollouts, over the last window.
        rise: above the first window's share.
    """

    most: float = Field(0.5, gt=0, le=1)
    rise: float = Field(0.2, ge=0, le=1)

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        ends = self.ends(seen, "capped")
        if ends is None or ends[1] <= self.most or ends[1] - ends[0] <= self.rise:
            return ""
        turns = self.ends(seen, "turns")
        also = "" if turns is None else f" (turns {turns[0]:.1f} to {turns[1]:.1f})"
        return f"rollouts that end at a cap went from {ends[0]:.0%} to {ends[1]:.0%}{also}"

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return "whether a reward pays for each turn, and what the last turns repeat"


class Masked(Wire):
    """Much of what is sampled is not trained on: masked, weighted away, or failed.

    Attributes:
        most: share of loss tokens masked, or of rollouts that failed, over the last window.
        mean: least mean importance weight of the last window.
        smallest: least importance weight of a token, fallen short of in every step of the window.
    """

    most: float = Field(0.2, gt=0, le=1)
    mean: float = Field(0.5, ge=0)
    smallest: float = Field(1e-4, ge=0)

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        window = {name: seen.values(name)[-self.window :] for name in _SHARES}
        last = {
            name: fmean(values) for name, values in window.items() if len(values) == self.window
        }
        for name, words in (("masked", "loss tokens are masked"), ("failed", "rollouts failed")):
            if last.get(name, 0.0) > self.most:
                return f"{last[name]:.0%} of the {words}, above {self.most:.0%}"
        if last.get("weight_mean", math.inf) < self.mean:
            return f"the mean importance weight is {last['weight_mean']:.3g}, below {self.mean:g}"
        masks = last.get("masked", 0.0) > 0  # a masked token's weight is 0
        if "weight_min" in last and not masks and max(window["weight_min"]) < self.smallest:
            return (
                f"in every step a token's importance weight was {max(window['weight_min']):.2g} or "
                f"less, below {self.smallest:g}"
            )
        return ""

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return "the log-probability gap, errors of failed rollouts, the bounds of loss.correction"


_SHARES = ("masked", "failed", "weight_mean", "weight_min")


class GradNorm(Wire):
    """The gradient explodes: the median norm of the last 3 steps against that of the `window` before.

    Attributes:
        factor: times the earlier median.
        least: a smaller norm is no explosion.
    """

    window: int = Field(20, ge=2)
    factor: float = Field(20.0, gt=1)
    least: float = Field(1.0, ge=0)

    def found(self, seen: History) -> str:
        """See `Wire.found`."""
        # 0 is the norm of a step without a gradient: every group was silent
        values = [value for value in seen.values("grad_norm") if value > 0]
        earlier, late = values[:-_LATE][-self.window :], values[-_LATE:]
        if len(earlier) < min(self.window, 5) or seen.steps[-1].get("grad_norm") != late[-1]:
            return ""
        before, now = median(earlier), median(late)
        if now <= self.least or now <= self.factor * before:
            return ""
        return (
            f"the gradient's norm went from {before:.3g} to {now:.3g} (medians of {len(earlier)} steps "
            f"and the last {_LATE}), above {self.factor:g} times"
        )

    @property
    def look(self) -> str:
        """See `Wire.look`."""
        return "ratio_max and gap_max of the last steps; lower update.optimizer.lr"


_LATE = 3


class Tripwires(Strict):
    """The wires of a run; null switches one off.

    Attributes:
        validation: the reward rises while the validation falls.
        tool_entropy: the diversity of tool calls collapses.
        gap: engine and learner disagree on log-probabilities.
        capped: episodes drift to their caps.
        masked: much of what is sampled is not trained on.
        entropy: the policy's entropy collapses.
        grad_norm: the gradient explodes.
    """

    validation: RewardWithoutValidation | None = RewardWithoutValidation()
    tool_entropy: ToolEntropy | None = ToolEntropy()
    gap: Gap | None = Gap()
    capped: Capped | None = Capped()
    masked: Masked | None = Masked()
    entropy: Entropy | None = Entropy()
    grad_norm: GradNorm | None = GradNorm()


def check(wires: Tripwires, seen: History, ignored: Collection[str] = ()) -> list[Trip]:
    """The wires that the history trips, in their order.

    Args:
        wires: with their thresholds.
        seen: the run so far.
        ignored: names of wires that are not looked at.
    """
    return [
        Trip(name, said, wire.look, *wire.steps(seen))
        for name, wire in _on(wires)
        if seen.steps and name not in ignored and (said := wire.found(seen))
    ]


def require_known(names: Collection[str]) -> None:
    """See that wires of these names exist.

    Raises:
        UsageError: one does not.
    """
    known = list(Tripwires.model_fields)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
            raise UsageError(f"no tripwire '{name}'", hint)


def _on(wires: Tripwires) -> list[tuple[str, Wire]]:
    every = ((name, getattr(wires, name)) for name in Tripwires.model_fields)
    return [(name, wire) for name, wire in every if wire is not None]
