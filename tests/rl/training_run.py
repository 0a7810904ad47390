"""A short training run of the micro policy; as a script it prints each step.

python -m tests.rl.training_run RUN KEY=VALUE…
"""

import logging
import sys
from pathlib import Path

from agent.settings import isolated_settings
from rl.loop import train
from rl.recipe import validated
from rl.train_recipe import TrainRecipe

RECIPE = {
    "base": "micro",
    "steps": 6,
    "seed": 3,
    "tasks": {"worlds": {"count": 1, "first_seed": 5001, "entities": 80, "questions": 60}},
    "rollouts": {
        "tasks": 4,
        "size": 4,
        "concurrency": 16,
        "agent": {
            "search": {"mode": "lexical"},
            "budgets": {"turns": 4},
            "sampling": {"max_tokens": 64},
        },
    },
    "rewards": {"answer": {"reward": "f1"}, "gain": {"reward": "information_gain"}},
    "credit": {"estimator": "igpo"},
    "loss": {"likelihood": 0.1},
    "update": {"optimizer": {"lr": 1.0e-4, "warmup": 0.0, "final": 1.0}, "minibatches": 2},
    "checkpoints": {"every": 2},
}


class Printed:
    """Says what happens, a line each."""

    def stage(self, name, done, total):
        print("stage", name, done, total, flush=True)

    def notify(self, line):
        print(line, flush=True)

    def step(self, metrics):
        print("step", int(metrics["step"]), flush=True)

    def validated(self, found):
        print("validated", found.step, found.right, flush=True)


def recipe(**changes):
    """The recipe above with sections changed."""
    made = {**RECIPE}
    for key, value in changes.items():
        section = made.get(key)
        merge = isinstance(section, dict) and isinstance(value, dict) and key != "rewards"
        made[key] = {**section, **value} if merge else value
    return validated(TrainRecipe, "test", made)


def run(folder, home, observer=None, **changes):
    """Train; gives the report."""
    settings = isolated_settings(home=home)
    return train(recipe(**changes), settings, folder, observer or Printed())


if __name__ == "__main__":
    import json

    logging.basicConfig(level=logging.WARNING)
    out, *options = sys.argv[1:]
    changes = {key: json.loads(value) for key, value in (o.split("=", 1) for o in options)}
    run(Path(out), Path(out).parent / "home", **changes)
