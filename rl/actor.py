"""What acts in a training run: asks each step's tasks and each validation's, and keeps the episodes.

Lives in the main process. Knows nothing of rewards, credit and the learner: it plays through one policy,
whose weights others change between two collections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agent.policies.base import Policy
from agent.settings import Settings, isolated_settings
from agent.store import TrajectoryStore
from agent.trajectory import Trajectory
from eval.benchmarks import Benchmark
from eval.sample import score_one
from rl.boundary import balanced, foreign_labels, known_tasks, tasks_of, told_labels
from rl.curriculum import Drawn, Shuffle
from rl.observer import Observer
from rl.question_sets import QuestionSet, load_sets, open_sets, require_apart
from rl.recovery import ask_misled, require_gold
from rl.rewards import Need, RewardContext, require, require_tools
from rl.rewind import STORE
from rl.rollouts import Stage, groups_of, measured
from rl.step_metrics import Metrics, Validated, of_rollouts, validated
from rl.train_recipe import Tasks, TrainRecipe

Groups = list[list[Trajectory]]

_GLANCE = 0.2  # seconds between two looks at whether the run ends


class Actor:
    """Plays the episodes of a run. `open` it with a policy before anything is played.

    Args:
        recipe: of the run.
        settings: of this machine: folders; what shapes episodes is the recipe's.
        run: the run's folder; holds the worlds and the store.
        data: where question sets lie.
        observer: is told how it goes.

    Raises:
        UsageError: a set that does not exist or is both trained on and measured on, a reward that the
            tasks lack something for, or one without gold evidence that is to be misled.
    """

    def __init__(
        self, recipe: TrainRecipe, settings: Settings, run: Path, data: str, observer: Observer
    ) -> None:
        self._recipe, self._run, self._observer = recipe, run, observer
        self._settings = isolated_settings(**recipe.rollouts.agent, home=settings.home)
        self.api_key = settings.api_key
        self.opened = False
        self._ahead: asyncio.Task[Groups] | None = None
        worlds = run / "worlds"

        def loaded(tasks: Tasks | None) -> tuple[Benchmark, ...]:
            made = (self._settings, data, worlds, observer.notify)
            return load_sets(tasks, *made) if tasks else ()

        validation = recipe.validation
        self.asked = loaded(recipe.tasks)
        self.held = loaded(validation.tasks if validation.every else None)
        require_apart(self.asked, self.held)
        if recipe.rollouts.misled:
            require_gold("rollouts.misled", self.asked, self._settings)
        if validation.misled:
            require_gold("validation.misled", self.held, self._settings)
        tasks = [task for one in self.asked for task in one.tasks]
        context = RewardContext(known=told_labels(tasks), promised=recipe.provides)
        rewards = recipe.reward.rewards.values()
        require(rewards, context, tasks)
        require_tools(rewards, self._settings.tools)
        read = recipe.tasks.balanced or any(Need.KNOWN in reward.needs for reward in rewards)
        if read and not recipe.tasks.probe and (warning := foreign_labels(tasks, recipe.base)):
            observer.notify(warning)

    async def open(self, policy: Policy) -> dict[str, bool]:
        """Tools and store; gives the tasks that are known closed-book.

        Raises:
            UsageError: a tool that does not exist, or a corpus or store that cannot be read.
            PolicyUnavailableError: the policy failed in every sample of the closed-book probe.
        """
        recipe = self._recipe
        asked, self._measured = self._sets(self.asked, policy), self._sets(self.held, policy)
        self._scorers = {one.name: one.scorer for one in asked}
        self._stage = Stage(policy, recipe.rollouts)
        self._store = TrajectoryStore.open(self._run / STORE)
        self.opened = True
        known = told_labels(tasks_of(asked))
        if recipe.tasks.probe:
            known = await self._probe(policy)
        kept = balanced(asked, known, recipe.seed) if recipe.tasks.balanced else asked
        self._shuffle = Shuffle(kept, recipe.seed)
        return known

    def close(self) -> None:
        """Release the store."""
        if self.opened:
            self._store.close()

    async def collect(self, step: int) -> Groups:
        """A step's groups, one a task, failed episodes among them; in the store from now on.

        Raises:
            PolicyUnavailableError: the policy failed in every episode.
        """
        groups, self._ahead = await (self._ahead or self._play(step)), None
        found = [trajectory for group in groups for trajectory in group]
        await asyncio.to_thread(self._store.add_many, found)
        return groups

    def begin(self, step: int) -> None:
        """Play a step's episodes while something else goes on; `collect` gives them."""
        self._ahead = asyncio.create_task(self._play(step))

    async def finish(self, ends: Callable[[], bool]) -> None:
        """Wait for what has begun, so that no episode straddles a change of weights; once the run
        `ends`, nobody learns from it, and it is dropped."""
        while self._ahead is not None and not self._ahead.done():
            if ends():
                await self.drop()
            else:
                await asyncio.wait([self._ahead], timeout=_GLANCE)

    async def drop(self) -> None:
        """Cancel what has begun; none of its episodes is in the store yet."""
        task, self._ahead = self._ahead, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def validate(self, step: int) -> Validated:
        """Measure the policy on the held-out tasks.

        Args:
            step: updates done.

        Raises:
            PolicyUnavailableError: the policy failed in every episode.
        """
        drawn = [Drawn(one, task) for one in self._measured for task in one.tasks]
        heat = self._recipe.validation.temperature
        plays = measured(drawn, self._recipe.seed, step, heat)

        def told(done: int, total: int) -> None:
            self._observer.stage("validate", done, total)

        done = await self._stage.play(plays, told)
        await asyncio.to_thread(self._store.add_many, done)
        samples = [
            score_one(source.name, source.scorer, task, trajectory)
            for (source, task), trajectory in zip(drawn, done, strict=True)
        ]
        found = validated(step, samples)
        if not self._recipe.validation.misled:
            return found
        seed = self._recipe.seed
        misled, astray = await ask_misled(drawn, samples, self._stage, step, seed, heat, told)
        await asyncio.to_thread(self._store.add_many, astray)
        return replace(found, misled=misled)

    def behaviour(self, groups: Sequence[Sequence[Trajectory]]) -> Metrics:
        """How the policy behaved in a step's groups."""

        def scorer_of(trajectory: Trajectory) -> tuple[str, str]:
            name = trajectory.group.split("/")[1]
            return name, self._scorers[name]

        return of_rollouts(groups, scorer_of, self._recipe.rollouts.misled > 0)

    async def _play(self, step: int) -> Groups:
        recipe = self._recipe
        drawn = self._shuffle.draw(step, recipe.rollouts.tasks)
        plays = groups_of(step, drawn, recipe.rollouts, recipe.seed)
        found = await self._stage.play(plays, lambda d, n: self._observer.stage("collect", d, n))
        size = recipe.rollouts.size
        return [found[i : i + size] for i in range(0, len(found), size)]

    def _sets(self, loaded: Sequence[Benchmark], policy: Policy) -> tuple[QuestionSet, ...]:
        return open_sets(loaded, self._settings, policy, self._observer.notify)

    async def _probe(self, policy: Policy) -> dict[str, bool]:
        """Ask every task closed-book, with the weights that the run begins with."""
        notify = self._observer.notify
        without = self._settings.model_copy(update={"tools": ()})
        closed = open_sets(self.asked, without, policy, notify)

        def told(done: int, total: int) -> None:
            self._observer.stage("probe", done, total)

        known = await known_tasks(closed, self._stage, self._recipe, self._run, told)
        notify(f"{sum(known.values())} of {len(known)} tasks are known closed-book")
        return known
