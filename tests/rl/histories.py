"""Made-up histories of training runs."""

import json
from pathlib import Path

from eval.stats import Interval
from rl.run_history import Asked, History, Measured

CALM = {
    "steps": 40.0,
    "reward": 0.3,
    "reward_error": 0.02,
    "reward/answer": 0.3,
    "right": 0.3,
    "advantage_abs": 0.2,
    "tool_entropy": 0.68,
    "entropy": 0.15,
    "sampled_entropy": 0.12,
    "gap_mean": 0.002,
    "gap_max": 0.2,
    "capped": 0.1,
    "turns": 5.0,
    "searches": 2.0,
    "failed": 0.0,
    "masked": 0.0,
    "weight_mean": 1.0,
    "weight_min": 0.8,
    "grad_norm": 0.5,
    "clip_low": 0.01,
    "clip_high": 0.02,
    "old_kl": 0.001,
    "sampled_tokens": 1000.0,
    "seconds": 5.0,
    "seconds/collect": 4.0,
    "seconds/update": 1.0,
}


def steps(count=20, **courses):
    """Calm steps; a course is a function of the step, 1 and up."""
    return tuple(
        {**CALM, "step": float(step), **{name: of(step) for name, of in courses.items()}}
        for step in range(1, count + 1)
    )


def measured(step, right, questions=100, pairs=True):
    """A validation in which the first `right` of the questions are answered rightly."""
    mean = right / questions
    asked = {
        f"world/q{n:03d}": Asked("1hop", float(n < right), f"{step:04x}{n:028x}")
        for n in range(questions)
    }
    interval = Interval(mean, max(0.0, mean - 0.1), min(1.0, mean + 0.1), questions)
    figures = {"searches": 2.0, "turns": 5.0, "wrong": 0.3, "declined": 0.1, "hallucinated": 0.2}
    return Measured(step, interval, {"1hop": interval}, figures, asked if pairs else {})


def history(count=20, validations=(), **courses):
    return History(steps(count, **courses), tuple(validations))


def write(run: Path, seen: History, recipe="{}"):
    """A run folder that holds a history."""
    (run / "validation").mkdir(parents=True)
    (run / "recipe.json").write_text(recipe)
    lines = [json.dumps({**one, "step": int(one["step"])}) for one in seen.steps]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for one in seen.validations:
        questions = [
            {"set": "world", "task": name.partition("/")[2], **vars(asked)}
            for name, asked in one.questions.items()
        ]
        facts = {
            "step": one.step,
            "right": vars(one.right),
            "kinds": {kind: vars(interval) for kind, interval in one.kinds.items()},
            **one.figures,
            "questions": questions,
        }
        (run / "validation" / f"step-{one.step:05d}.json").write_text(json.dumps(facts))
    return run
