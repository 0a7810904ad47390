"""Rewards by name: registration, making one from its options, and what a selection lacks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agent.task import Task
from kg.errors import UsageError
from rl.rewards.base import Reward
from rl.rewards.context import Need, RewardContext, of_task, task_has, task_key

R = TypeVar("R", bound=type[Reward])

_KINDS: dict[str, type[Reward]] = {}


def register(kind: R) -> R:
    """Class decorator: make a reward known by its `name`.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in _KINDS:
        raise ValueError(f"two rewards are named '{kind.name}'")
    _KINDS[kind.name] = kind
    return kind


def reward_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_KINDS))


def reward_kind(name: str) -> type[Reward]:
    """The class of that name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(reward_names())}"
        raise UsageError(f"no reward '{name}'", hint)
    return _KINDS[name]


def make_reward(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """A reward from its name and options.

    Raises:
        UsageError: no such reward, an unknown option (the nearest is suggested) or a wrong value.
    """
    kind = reward_kind(name)
    try:
        return kind.model_validate(dict(options or {}))
    except ValidationError as error:
        raise UsageError(f"reward '{name}': {_first(error, kind)}") from error


def _first(error: ValidationError, kind: type[Reward]) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}" if where else problem["msg"]
    near = difflib.get_close_matches(where, kind.model_fields, 1)
    return f"unknown option '{where}'" + (f"; did you mean '{near[0]}'?" if near else "")


def missing(rewards: Iterable[Reward], context: RewardContext, tasks: Sequence[Task] = ()) -> str:
    """What the selected rewards lack, before a run starts: one message, "" when nothing.

    Args:
        rewards: the selection.
        context: as the run will use it, with what it will compute named in `promised`.
        tasks: of the run; without them, what tasks carry is not checked.
    """
    lines = [
        f"{reward.name} lacks {', '.join(gaps)}"
        for reward in rewards
        if (gaps := [gap for need in reward.needs if (gap := _gap(need, context, tasks))])
    ]
    return "; ".join(lines)


def require(rewards: Iterable[Reward], context: RewardContext, tasks: Sequence[Task] = ()) -> None:
    """Refuse a selection that lacks something.

    Raises:
        UsageError: with the message of `missing`.
    """
    if message := missing(rewards, context, tasks):
        raise UsageError(message, "provide what is named, or leave the reward out")


def require_tools(rewards: Iterable[Reward], tools: Sequence[str]) -> None:
    """Refuse options that name a tool which the run does not have: nothing would ever match it.

    Args:
        rewards: the selection; tools that a reward names by default are not looked at.
        tools: of the run.

    Raises:
        UsageError: for the first one; the nearest is suggested.
    """
    for reward in rewards:
        for name in sorted(set(_named_tools(reward)) - set(tools)):
            near = difflib.get_close_matches(name, tools, 1)
            there = f"there are: {', '.join(tools)}" if tools else "there are none"
            hint = f"did you mean '{near[0]}'?" if near else there
            raise UsageError(f"reward '{reward.name}' names '{name}', no tool of this run", hint)


def _named_tools(options: BaseModel) -> Iterator[str]:
    for key in options.model_fields_set:
        value = getattr(options, key)
        if key in ("only", "tools", "prices"):
            yield from value
        elif key == "tool":
            yield value
        if isinstance(value, BaseModel):
            yield from _named_tools(value)
    for part in getattr(options, "rewards", {}).values():  # of a combination
        yield from _named_tools(part)


def _gap(need: Need, context: RewardContext, tasks: Sequence[Task]) -> str:
    if not of_task(need) and not context.has(need):
        return f"{need.value} ({need.remedy})"
    without = [task.id for task in tasks if not _covered(need, context, task)]
    if not without or need in context.promised:
        return ""
    share = f"{len(without)} of {len(tasks)} tasks, first {without[0]}"
    return f"{need.value} ({need.remedy}: {share})"


def _covered(need: Need, context: RewardContext, task: Task) -> bool:
    """Whether a need that somebody provides is provided for this task."""
    if need is Need.KNOWN:
        return task_key(task) in context.known
    return not of_task(need) or task_has(need, task)
