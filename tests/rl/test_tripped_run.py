"""A real run whose reward does harm: it is paused, and goes on when told to."""

import pytest

from agent.settings import load_settings
from rl.loop import train
from rl.pause import TrippedError
from rl.run_history import read_history
from rl.train_recipe import TrainRecipe

# nothing is rewarded but not to search: the policy stops searching, and its answers become guesses
WORLD = {"count": 1, "entities": 60}
RECIPE = {
    "steps": 8,
    "seed": 3,
    "tasks": {"worlds": {**WORLD, "first_seed": 700001, "questions": 100}},
    "rollouts": {
        "tasks": 6,
        "size": 4,
        "concurrency": 32,
        "engine": "transformers",
        "agent": {
            "search": {"mode": "lexical"},
            "sampling": {"max_tokens": 48},
            "budgets": {"turns": 6},
        },
    },
    "rewards": {"searches": {"reward": "tool_cost", "options": {"price": 0.2, "most": 1.0}}},
    "credit": {"estimator": "grpo"},
    "update": {"optimizer": {"lr": 2e-3, "warmup": 0.0, "final": 1.0}},
    "validation": {
        "every": 2,
        "tasks": {
            "worlds": {**WORLD, "first_seed": 800001, "questions": 200},
            "split": "test",
            "limit": 24,
        },
    },
    "checkpoints": {"every": 100},
    "tripwires": {"validation": {"window": 2, "patience": 1}},
}


class Quiet:
    def stage(self, name, done, total): ...
    def notify(self, line): ...
    def step(self, metrics): ...
    def validated(self, found): ...


class Watch(Quiet):
    def __init__(self):
        self.stages = []

    def stage(self, name, done, total):
        self.stages.append(name)


def test_a_harmful_reward_pauses_the_run_which_goes_on_when_ignored(tmp_path):
    recipe, run = TrainRecipe.model_validate(RECIPE), tmp_path / "run"
    with pytest.raises(TrippedError) as caught:
        train(recipe, load_settings(), run, Quiet())
    seen = read_history(run)
    paused = seen.step
    assert paused < recipe.steps
    assert f"tripwire 'validation' paused the run at step {paused}" in caught.value.message
    assert "--ignore validation" in caught.value.hint
    assert "agent trace html" in caught.value.hint
    first, last = seen.validations[0], seen.validations[-1]
    assert last.right.mean < first.right.mean
    assert seen.steps[-1]["reward"] > seen.steps[0]["reward"]
    assert (run / "checkpoint" / f"step-{paused:05d}").is_dir()
    page = (run / "report.html").read_text()
    assert "paused by a tripwire" in page
    assert "From right to wrong" in page

    # the same command pauses again at once: nothing is loaded, nothing is played
    events, watch = read_history(run).events, Watch()
    with pytest.raises(TrippedError) as again:
        train(recipe, load_settings(), run, watch)
    assert (again.value.message, again.value.hint) == (caught.value.message, caught.value.hint)
    assert watch.stages == []
    assert (read_history(run).step, read_history(run).events) == (paused, events)

    report = train(recipe, load_settings(), run, Quiet(), ignore=["validation"])
    assert report.finished
    assert [one["step"] for one in read_history(run).steps] == list(range(1, recipe.steps + 1))
    assert "finished" in (run / "report.html").read_text()
