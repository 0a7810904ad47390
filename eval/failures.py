"""When a policy fails too often for a run to go on, or to be called finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.trajectory import StopReason, Trajectory
from eval.analyses.given import OF
from kg.errors import PolicyUnavailableError

_GIVE_UP = 8  # questions in a row that end a run
_LAST = 2  # as many at its end mean that the policy is gone, too


class PolicyFailedError(PolicyUnavailableError):
    """The policy failed while a run was under way; what there is can be scored."""


@dataclass
class Failures:
    """On which questions the policy failed in a run, over all of its sets.

    Samples of a question, and the steps of a decomposed one, count once: one that the policy cannot take
    says little about the others.

    Attributes:
        out: folder of the run.
        asked, failed: episodes that were played, and those of them that failed.
        row: questions that failed since the last episode that did not.
        cause: of the last failure.
        over: it failed so often that nothing more is to be asked.
    """

    out: Path
    asked: int = 0
    failed: int = 0
    row: set[str] = field(default_factory=set)
    cause: str = ""
    over: bool = False
    _questions: set[str] = field(default_factory=set)

    def note(self, name: str, found: Trajectory) -> None:
        """Count an episode of a set."""
        self.asked += 1
        if found.stop_reason is not StopReason.POLICY_ERROR:
            self.row.clear()
            return
        question = f"{name}:{found.task.meta.get(OF) or found.task.id}"
        self.row.add(question)
        self._questions.add(question)
        self.failed, self.cause = self.failed + 1, found.error
        self.over = self.over or len(self.row) >= _GIVE_UP

    def check(self) -> None:
        """See whether the run can go on.

        Raises:
            PolicyFailedError: it failed on many questions in a row, whatever the set.
        """
        if self.over:
            raise self._error(f"on {_GIVE_UP} questions in a row")

    def settle(self, answered: bool) -> None:
        """See at the end of a run whether the policy was there.

        Args:
            answered: whether any episode of the run did not fail, one of an earlier attempt included.

        Raises:
            PolicyFailedError: it failed on more than half of what it was asked, or on the last of it. A
                single question that fails whenever a run goes on is not enough.
        """
        if answered and len(self._questions) < _LAST:
            return
        if 2 * self.failed > self.asked:
            raise self._error(f"on {self.failed} of {self.asked} episodes")
        if len(self.row) >= _LAST:
            raise self._error(f"on the last {len(self.row)} questions, of {self.asked} episodes")

    def _error(self, how: str) -> PolicyFailedError:
        return PolicyFailedError(
            f"the policy failed {how}: {self.cause}",
            f"the same command again to go on; what is there: agent eval score {self.out}",
        )
