"""When a policy fails too often for a run to go on, or to be called finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.trajectory import StopReason, Trajectory
from kg.errors import PolicyUnavailableError

_GIVE_UP = 8  # failures in a row that end a run
_LAST = 2  # as many at its end mean that the policy is gone, too


class PolicyFailedError(PolicyUnavailableError):
    """The policy failed while a run was under way; what there is can be scored."""


@dataclass
class Failures:
    """How often the policy failed in a run, over all of its sets.

    Attributes:
        out: folder of the run.
        asked, failed: episodes that were played, and those of them that failed.
        row: failures since the last episode that did not fail.
        cause: of the last one.
        over: it failed so often that nothing more is to be asked.
    """

    out: Path
    asked: int = 0
    failed: int = 0
    row: int = 0
    cause: str = ""
    over: bool = False

    def note(self, found: Trajectory) -> None:
        """Count an episode."""
        self.asked += 1
        if found.stop_reason is not StopReason.POLICY_ERROR:
            self.row = 0
            return
        self.failed, self.row, self.cause = self.failed + 1, self.row + 1, found.error
        self.over = self.over or self.row >= _GIVE_UP

    def check(self) -> None:
        """See whether the run can go on.

        Raises:
            PolicyFailedError: it failed many times in a row, whatever the set.
        """
        if self.over:
            raise self._error(f"{_GIVE_UP} times in a row")

    def settle(self, answered: bool) -> None:
        """See at the end of a run whether the policy was there.

        Args:
            answered: whether any episode of the run did not fail, one of an earlier attempt included.

        Raises:
            PolicyFailedError: it failed on more than half of what it was asked, or on the last of it. A
                single question that fails whenever a run goes on is not enough.
        """
        if 2 * self.failed > self.asked and (self.failed >= _LAST or not answered):
            raise self._error(f"on {self.failed} of {self.asked} episodes")
        if self.row >= _LAST:
            raise self._error(f"on the last {self.row} of {self.asked} episodes")

    def _error(self, how: str) -> PolicyFailedError:
        return PolicyFailedError(
            f"the policy failed {how}: {self.cause}",
            f"the same command again to go on; what is there: agent eval score {self.out}",
        )
