"""What people say of logged episodes: rewards by name, and the right answer; for retraining."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.store import TrajectoryStore
from kg.errors import UsageError
from rl.logged import with_correction


def attach_rewards(
    store: TrajectoryStore, id: str, given: Sequence[str]
) -> tuple[str, dict[str, float]]:
    """Attach rewards to an episode; those of other names that are there stay.

    Args:
        store: where it lies.
        id: or how it begins.
        given: `NAME=VALUE`, each.

    Returns:
        The episode's whole id, and all its rewards.

    Raises:
        UsageError: no such episode, or a text that names no finite number.
    """
    rewards = dict(_reward(text) for text in given)
    full = store.full_id(id)
    store.set_rewards(full, rewards)
    return full, dict(store.get(full).rewards)


def _reward(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name.strip() or not math.isfinite(number):
        raise UsageError(f"'{text}' is no reward", "NAME=VALUE, such as thumb=1")
    return name.strip(), number


def attach_correction(store: TrajectoryStore, id: str, answer: str) -> str:
    """Attach the right answer to an episode, in place of one that is there; gives its whole id.

    Raises:
        UsageError: no such episode, or an answer without text.
    """
    if not answer.strip():
        raise UsageError("the right answer has no text", 'agent trace correct ID --answer "…"')
    found = store.get(id)
    store.replace(with_correction(found, answer.strip()))
    return found.id
