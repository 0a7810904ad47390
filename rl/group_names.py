"""What the groups of a training run are called in its store: those of steps, and those of validations,
whose tasks are never trained on."""

from __future__ import annotations

_MEASURED = ("validation", "misled")


def of_step(step: int, source: str, task: str) -> str:
    """The rollouts of a set's task in a step."""
    return f"step-{step:05d}/{source}/{task}"


def of_validation(step: int, source: str, task: str, misled: bool = False) -> str:
    """The episode of a held-out task after `step` updates; another one where its search is misled."""
    return f"{_MEASURED[misled]}-{step:05d}/{source}/{task}"


def is_measured(group: str) -> bool:
    """Whether a group was asked to be measured."""
    kind, _, step = group.partition("/")[0].partition("-")
    return kind in _MEASURED and step.isdecimal()
