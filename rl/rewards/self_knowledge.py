"""Does the policy judge the same task the same way every time? (KnowRL, October 2025)

Source: KnowRL, "Teaching Language Models to Know What They Know" (arXiv 2510.11407): k independent
self-analyses of a task say feasible or infeasible, and the reward grows with their agreement. The
paper's formula was not readable; the share of agreeing votes is its natural reading. The group is the
k analyses of one task, each ending in an answer that names one label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from agent.trajectory import Trajectory
from eval.metrics import normalise
from rl.rewards.base import Range, Reward, RewardError, Values, at_end, unit
from rl.rewards.context import Need, RewardContext
from rl.rewards.reading import final_answer, last, meta_text
from rl.rewards.registry import register


def consensus(votes: Sequence[str | None]) -> float:
    """Share of the commonest label, over all votes; a vote that cannot be read (None) agrees with none.

    8 of 8: 1.0; 4 against 4: 0.5; no votes or none readable: 0.0.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    return max(counts.values()) / len(votes) if counts else 0.0


@register
class SelfConsistency(Reward):
    """Agreement of a group of self-analyses, on the last turn of each.

    Agreement alone is best served by saying the same of every task. So the share of the label over
    many tasks is subtracted: a policy that always says "feasible" agrees by chance alone and gets 0.

    Attributes:
        labels: the two labels, as whole words.
        credit: `vote`, each analysis by the share of the others that say the same; `task`, all of a
            group by the share of the commonest label; `claimed`, all of a group by the share that says
            what the task's writer claimed (`meta["claimed"]`).
        balanced: subtract the label's share among analyses of many tasks.
        unreadable: of an analysis that names no label, or both.
    """

    name: ClassVar[str] = "self_consistency"
    source: ClassVar[str] = "KnowRL 2510.11407 (formula inferred); chance correction: own"
    last_turn_only: ClassVar[bool] = True
    labels: tuple[str, str] = ("feasible", "infeasible")
    credit: Literal["vote", "task", "claimed"] = "vote"
    balanced: bool = True
    unreadable: float = Field(0.0, ge=-1, le=0)

    @field_validator("labels")
    @classmethod
    def _plain(cls, labels: tuple[str, str]) -> tuple[str, str]:
        first, second = (normalise(label) for label in labels)
        if len(first.split()) != 1 or len(second.split()) != 1 or first == second:
            raise ValueError("two different words are needed, each a single one")
        return first, second

    @property
    def range(self) -> Range:
        """A share, less another where balanced."""
        return Range(-1.0 if self.balanced else self.unreadable, 1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Vote shares for the balance, the claimed label for that credit."""
        claimed = (Need.CLAIMED,) if self.credit == "claimed" else ()
        return (*claimed, *((Need.VOTES,) if self.balanced else ()))

    def vote(self, trajectory: Trajectory) -> str | None:
        """The one label that the answer names."""
        words = normalise(final_answer(trajectory)).split()
        named = [label for label in self.labels if label in words]
        return named[0] if len(named) == 1 else None

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """Agreement, less what chance explains."""
        votes = [self.vote(trajectory) for trajectory in group]
        return [
            at_end(trajectory, self._value(i, votes, trajectory, context))
            for i, trajectory in enumerate(group)
        ]

    def _value(
        self, i: int, votes: list[str | None], trajectory: Trajectory, context: RewardContext
    ) -> float:
        vote = votes[i]
        if vote is None:
            return self.unreadable
        if len(votes) == 1 and self.credit != "claimed":
            return 0.0  # nobody to agree with
        if self.credit == "vote":
            label, share = vote, (votes.count(vote) - 1) / (len(votes) - 1)
        elif self.credit == "task":
            label, share = self._commonest(votes), consensus(votes)
        else:
            label = normalise(meta_text(trajectory, "claimed"))
            share = votes.count(label) / len(votes)
        return share - self._chance(label, trajectory, context)

    def _commonest(self, votes: list[str | None]) -> str:
        return max(self.labels, key=votes.count)

    def _chance(self, label: str, trajectory: Trajectory, context: RewardContext) -> float:
        if not self.balanced:
            return 0.0
        if label not in context.vote_shares:
            raise RewardError(f"no vote share of '{label}'", trajectory.id, last(trajectory))
        return unit(context.vote_shares[label], f"the vote share of '{label}'", trajectory.id)
