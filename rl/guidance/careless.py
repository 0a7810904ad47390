"""Demonstrators with bad habits, for policies that have something to unlearn.

Tool-using policies come out of supervised fine-tuning with such habits: they guess what they do not
know, and they decline what another search would have found. Which turn is to blame is plain here, so
that it can be seen whether reinforcement learning finds it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent.policies.base import Message
from agent.task import Task
from rl.guidance.expert import ABSTAIN, ExpertPolicy


class GuessingPolicy(ExpertPolicy):
    """Answers at once, with what is the answer to some question of the kind; some are right."""

    name = "guessing"

    def _first(self, task: Task) -> tuple[str, bool]:
        chance = random.Random(f"{self.seed}:{task.id}")
        said = [(one.kind, one.answers[0]) for one in self._tasks.values() if one.answers]
        pool = [answer for kind, answer in said if kind == task.kind] or [a for _, a in said]
        return (f"<answer>{chance.choice(pool)}</answer>" if pool else ABSTAIN), True


class DecliningPolicy(ExpertPolicy):
    """Searches once, calls whatever comes back useless, and declines."""

    name = "declining"

    def _next(self, task: Task, messages: Sequence[Message]) -> tuple[str, bool]:
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        if not replies:
            return f"<search>{task.question}</search>", True
        return (ABSTAIN if replies[-1].startswith("<judge>") else "<judge>no</judge>"), True
