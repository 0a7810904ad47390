"""The rollouts of a training step: groups of episodes over several question sets at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from agent.episode import Episode
from agent.misleading import can_mislead
from agent.policies.base import Policy, Sampling
from agent.rollout import Graphs, Play, run_episode
from agent.task import Task
from agent.trajectory import StopReason, Trajectory
from kg.errors import PolicyUnavailableError
from rl import group_names
from rl.curriculum import Drawn
from rl.train_recipe import Rollouts

Told = Callable[[int, int], None]


class Stage:
    """Plays episodes through one policy.

    Args:
        policy: that samples.
        rollouts: how many at once, and whether in lock-step with the engine.
    """

    def __init__(self, policy: Policy, rollouts: Rollouts) -> None:
        self._policy, self._rollouts = policy, rollouts
        self._graphs = Graphs()

    async def play(
        self, plays: Sequence[Play], told: Told = lambda done, total: None
    ) -> list[Trajectory]:
        """Trajectories in the order of the plays.

        Raises:
            PolicyUnavailableError: the policy failed in every episode.
            ExceptionGroup: several episodes met errors of the program at once; one comes out plainly.
        """
        together = _together(self._rollouts)
        if together:  # a prompt that is read again differs in the last bits
            await self._policy.forget_prefixes()
        out: list[Trajectory | None] = [None] * len(plays)
        waiting = iter(range(len(plays)))
        seats = min(self._rollouts.concurrency, len(plays))
        busy = _Busy(self._policy, seats if together else 0)
        done = 0

        async def sit() -> None:
            nonlocal done
            for index in waiting:
                play = plays[index]
                graph = self._graphs.of(play.setup.tools)
                out[index] = await run_episode(play.episode, play.setup, graph)
                done += 1
                told(done, len(plays))
            busy.leave()

        with busy.expected(), _plainly():
            async with asyncio.TaskGroup() as group:
                for _ in range(seats):
                    group.create_task(sit())
        found = [trajectory for trajectory in out if trajectory is not None]
        if found and all(t.stop_reason is StopReason.POLICY_ERROR for t in found):
            raise PolicyUnavailableError(
                f"the policy failed in all {len(found)} episodes: {found[0].error}"
            )
        return found


def _together(rollouts: Rollouts) -> bool:
    """Whether the engine waits for every episode before a step."""
    if rollouts.deterministic is not None:
        return rollouts.deterministic
    import torch

    return not torch.cuda.is_available()


@contextmanager
def _plainly() -> Iterator[None]:
    """An exception that a task group raises alone comes out as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


class _Busy:
    """How many episodes the engine has to wait for; 0 seats switch it off."""

    def __init__(self, policy: Policy, seats: int) -> None:
        self._policy, self._seats, self._on = policy, seats, seats > 0

    @contextmanager
    def expected(self) -> Iterator[None]:
        if self._on:
            self._policy.expect(self._seats)
        try:
            yield
        finally:
            if self._on:
                self._policy.expect(0)

    def leave(self) -> None:
        self._seats -= 1
        if self._on:
            self._policy.expect(max(0, self._seats))


def groups_of(step: int, drawn: Sequence[Drawn], rollouts: Rollouts, seed: int) -> list[Play]:
    """The plays of a step, group after group.

    An episode's id and seed follow from the run's seed, the step and its place: a step that is played
    again draws the same tokens. Whether its first search is made to go wrong follows from its seed.
    No episode ends by the clock unless the recipe sets a limit: what is learnt would depend on the
    machine and on how many others waited for its engine.
    """
    sampling = Sampling(temperature=1.0)
    plays = []
    for source, task in drawn:
        timed = "seconds" in (rollouts.agent.get("budgets") or {})
        setup = source.setup if timed else source.setup.untimed()
        setup = replace(setup, sampling=replace(sampling, max_tokens=setup.sampling.max_tokens))
        group = group_names.of_step(step, source.name, task.id)
        for number in range(rollouts.size):
            digest = hashlib.sha256(f"{seed}/{group}/{number}".encode()).hexdigest()
            drawn_seed = int(digest[:7], 16)
            astray = goes_wrong(task, drawn_seed, rollouts.misled)
            meta = {"id": digest[:32]}
            episode = Episode(task, seed=drawn_seed, group=group, misled=astray, meta=meta)
            plays.append(Play(setup, episode))
    return plays


def goes_wrong(task: Task, seed: int, share: float) -> bool:
    """Whether the first search of an episode is made to go wrong, for a share of all seeds.

    It follows from the episode's seed alone; never for a task without gold evidence.
    """
    digest = hashlib.sha256(f"misled/{seed}".encode()).hexdigest()
    return can_mislead(task) and int(digest[:8], 16) < share * 2**32


def measured(
    drawn: Sequence[Drawn], seed: int, step: int, temperature: float = 0.0, misled: bool = False
) -> list[Play]:
    """One episode of each task, for the validation after `step` updates; the same seeds each time.

    With `misled` the first search of each is made to go wrong.
    """
    return [
        Play(
            replace(source.setup, sampling=replace(source.setup.sampling, temperature=temperature)),
            Episode(
                task,
                seed=seed + number,
                group=group_names.of_validation(step, source.name, task.id, misled),
                misled=misled,
            ),
        )
        for number, (source, task) in enumerate(drawn)
    ]
