"""Episodes of earlier evaluations, found by everything that shapes an episode."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from agent.episode import Episode
from agent.graph import Setup
from agent.settings import Settings
from agent.store import Filter, TrajectoryStore
from agent.task import Task
from agent.trajectory import Status, StopReason, Trajectory
from eval.folder import computed_by, shape_of


class EpisodeCache:
    """The cache, for one setup.

    The key holds the question, the seed, the policy's weights, configuration, tokenizer and chat
    template, engine, number format and context length, sampling, prompt, format, budgets, the tools'
    data versions, and the versions of turnwise and of the packages that compute; use `--no-cache` while
    changing its code.
    """

    def __init__(self, store: TrajectoryStore, setup: Setup) -> None:
        self._store = store
        self._setup = setup

    @classmethod
    def open(cls, setup: Setup, settings: Settings) -> EpisodeCache | None:
        """None for a policy whose weights are not known: a server may change them any time."""
        if setup.policy.template is None:
            return None
        return cls(TrajectoryStore.open(settings.benchmarks_dir / "episodes.sqlite"), setup)

    def get(self, episode: Episode) -> Trajectory | None:
        """The trajectory that this episode would become, if it is known."""
        key = self._key(episode.task, episode.seed)
        found = next(self._store.query(Filter(group=key, limit=1)), None)
        return replace(found, task=episode.task) if found is not None else None

    def add(self, found: Trajectory) -> None:
        """Keep a finished episode; failures, what a time limit cut, and episodes in which a tool timed
        out or broke are not kept: another time they would go otherwise."""
        cut = found.status is Status.FAILED or found.stop_reason is StopReason.MAX_SECONDS
        if not cut and not found.fault:
            self._store.add(replace(found, group=self._key(found.task, found.seed)))

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    def _key(self, task: Task, seed: int) -> str:
        parts = {"question": task.question, "seed": seed, "policy": self._setup.policy_id}
        parts |= {**shape_of(self._setup), "packages": computed_by(self._setup)}
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
