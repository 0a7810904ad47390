"""The micro policy and a few of its rollouts in a small fictional world, made once."""

import asyncio
from types import SimpleNamespace

import pytest

from agent.policies.catalog import resolve
from agent.settings import isolated_settings
from rl.curriculum import Drawn
from rl.question_sets import load_sets, open_sets
from rl.rollouts import Stage, groups_of
from rl.train_recipe import Rollouts, Tasks

WORLD = {"count": 1, "first_seed": 424242, "entities": 60, "questions": 60}


@pytest.fixture(scope="session")
def micro(models_dir):
    return resolve("micro", models_dir)


@pytest.fixture(scope="session")
def played(micro, tmp_path_factory):
    """Four tasks of a world, four rollouts each, by the micro policy."""
    from agent.policies.transformers import TransformersPolicy

    folder = tmp_path_factory.mktemp("played")
    rollouts = Rollouts(tasks=4, size=4, concurrency=16, engine="transformers")
    agent = {"search": {"mode": "lexical"}, "budgets": {"turns": 6}}

    async def play():
        policy = TransformersPolicy(micro, name="micro", dtype="float32")
        settings = isolated_settings(home=folder, **agent)
        tasks = Tasks(worlds=WORLD, kinds=("1hop", "2hop", "unanswerable"), limit=4)
        loaded = load_sets(tasks, settings, "", folder / "worlds")
        sets = open_sets(loaded, settings, policy, lambda line: None)
        drawn = [Drawn(one, task) for one in sets for task in one.tasks]
        found = await Stage(policy, rollouts).play(groups_of(1, drawn, rollouts, 7))
        await policy.aclose()
        return sets, found

    sets, found = asyncio.run(play())
    groups = [found[i : i + 4] for i in range(0, len(found), 4)]
    return SimpleNamespace(sets=sets, groups=groups, agent=agent, worlds=folder / "worlds")


@pytest.fixture
def no_numbers(monkeypatch):
    """Every loss of a learner in this process is NaN."""
    import rl.learner

    honest = rl.learner.tree_loss

    def broken(*arguments, **named):
        found = honest(*arguments, **named)
        return found._replace(value=found.value * float("nan"))

    monkeypatch.setattr("rl.learner.tree_loss", broken)
