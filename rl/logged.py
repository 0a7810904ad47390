"""Which logged trajectories a policy can be trained on, and why the others cannot.

A trajectory of use may come from another model, from another tokenizer, from a greedy draw; it may be
wrong, or nobody may know whether it is right. Everything that is left out is named with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from agent.episode import ContextRule
from agent.formats import FORMATS
from agent.policies.chat import ChatTemplate
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory
from eval.metrics.text import contains
from eval.sample import score_one
from rl.group_names import is_measured
from rl.replies import CORRECTION, holds, obstacle, reply_with, shown
from tools.base import Source


class Wanted(BaseModel):
    """Which logged episodes are good enough, and by what.

    Attributes:
        reward: name of the reward attached to episodes; empty for the task's gold answers.
        threshold: an episode is good when its reward is above this.
        scorer: of answers against gold answers.
        policies: whose episodes are taken besides the base's own: names, versions of weights, or both as
            `name@version`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: str = ""
    threshold: float = Field(0.5, allow_inf_nan=False)
    scorer: str = "squad2"
    policies: tuple[str, ...] = ()


class LeftOut(NamedTuple):
    """An episode that was not used, and why, in words that many episodes share."""

    id: str
    reason: str


@dataclass
class Chosen:
    """What is trained on.

    Attributes:
        used: trajectories, ready to train on.
        corrected: how many of them end in a correction in the place of their own answer.
        left_out: the others.
    """

    used: list[Trajectory] = field(default_factory=list)
    corrected: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        """Reasons by how often they occur."""
        return dict(Counter(one.reason for one in self.left_out).most_common())


def with_correction(trajectory: Trajectory, answer: str) -> Trajectory:
    """The trajectory with the right answer attached; `TrajectoryStore.replace` keeps it."""
    meta = {**trajectory.task.meta, CORRECTION: answer}
    return replace(trajectory, task=replace(trajectory.task, meta=meta))


def unfit(trajectory: Trajectory, template: ChatTemplate, policies: Sequence[str]) -> str:
    """Why a trajectory is nothing to train on, whatever it is worth; "" when it can be.

    Args:
        trajectory: any.
        template: tokenizer of the model to be trained.
        policies: whose episodes are taken: name, version of the weights, or `name@version`.
    """
    name, _, version = trajectory.policy.rpartition("@")
    name = name or trajectory.policy
    if trajectory.status is Status.FAILED:
        return "the episode failed"
    if is_measured(trajectory.group):
        return "asked to be measured: an episode of a validation"
    if not trajectory.has_tokens:
        return "no token ids: the policy gave none"
    if not trajectory.sampled.any():
        return "no token that a policy sampled"
    if not {name, version, trajectory.policy} & set(policies):
        return f"of another policy: {name}"
    return "" if _same_tokenizer(trajectory, template) else "of another tokenizer"


def _same_tokenizer(trajectory: Trajectory, template: ChatTemplate) -> bool:
    """Whether the tokenizer reads the replies as they were recorded."""
    ids = trajectory.token_ids
    if int(ids.min()) < 0 or int(ids.max()) >= len(template.tokenizer):
        return False
    replies = [t for t in trajectory.turns if t.sampled and t.text.strip() and not t.forced]
    read = (template.decode(ids[t.reply.start : t.reply.stop].tolist()).strip() for t in replies)
    return not replies or any(
        text.startswith(turn.text.strip()) for text, turn in zip(read, replies, strict=True)
    )


def demonstrations(
    found: Iterable[Trajectory], wanted: Wanted, template: ChatTemplate, *base: str
) -> Chosen:
    """Episodes that are good enough to be imitated; corrections take the place of wrong answers.

    Malformed replies on the way carry no loss. The same tokens twice count once.

    Args:
        found: logged.
        wanted: what good enough means.
        template: tokenizer of the model to be trained.
        base: its name, and the version of its weights.
    """
    out, seen = Chosen(), set[bytes]()
    for trajectory in found:
        made: Trajectory | str = unfit(trajectory, template, (*base, *wanted.policies))
        if not made:
            made = _taken(trajectory, wanted, template)
        if isinstance(made, Trajectory) and made.token_ids.tobytes() in seen:
            made = "the same tokens as another one"
        if isinstance(made, str):
            out.left_out.append(LeftOut(trajectory.id, made))
            continue
        seen.add(made.token_ids.tobytes())
        out.corrected += made.answer != trajectory.answer or made.status is not trajectory.status
        out.used.append(_well_formed(made))
    return out


def _taken(trajectory: Trajectory, wanted: Wanted, template: ChatTemplate) -> Trajectory | str:
    """The trajectory to imitate, or why there is none."""
    correction = trajectory.task.meta.get(CORRECTION)
    if correction is not None:
        return _corrected(trajectory, correction, wanted, template)
    value = value_of(trajectory, wanted)
    if isinstance(value, str):
        return value
    return trajectory if value > wanted.threshold else "its reward is not above the threshold"


def value_of(trajectory: Trajectory, wanted: Wanted) -> float | str:
    """The attached reward, or how right the answer is; words where there is neither."""
    if wanted.reward:
        return trajectory.rewards.get(wanted.reward, f"no reward '{wanted.reward}' attached")
    task = trajectory.task
    if not task.answers and task.answerable is not False:
        return "no gold answer to judge it by"
    return score_one("", wanted.scorer, task, trajectory).right


def _corrected(
    trajectory: Trajectory, correction: object, wanted: Wanted, template: ChatTemplate
) -> Trajectory | str:
    """The trajectory with the right answer in the place of its own, or why that would be unsound.

    Sound is what the policy could have written from what it was shown: the right answer must occur in
    a source that the last reply's context holds. Anything else would teach it to make things up.
    """
    if not isinstance(correction, str) or not correction.strip():
        return "its correction is no text"
    if contains(trajectory.answer, correction) and contains(correction, trajectory.answer):
        return trajectory
    if why := obstacle(trajectory):
        return f"corrected, but {why}"
    support = (source for source in shown(trajectory) if holds(source, correction))
    if (source := next(support, None)) is None:
        return "corrected, but the right answer is in nothing that it was shown"
    return _rewritten(trajectory, correction.strip(), source, template)


def _rewritten(
    trajectory: Trajectory, answer: str, source: Source, template: ChatTemplate
) -> Trajectory:
    """The trajectory with another last reply; the new tokens have no log-probabilities."""
    last = trajectory.turns[-1]
    reply = reply_with(trajectory, answer, [source], template)
    start = last.reply.start
    tokens = np.concatenate([trajectory.token_ids[:start], reply.ids.astype(np.int32)])
    unknown = np.full(len(reply.ids), np.nan, dtype=np.float32)
    end = Span(len(tokens), len(tokens))
    action = Action(ActionKind.ANSWER, text=reply.answer, citations=(source.number,))
    turn = replace(
        last, reply=Span(start, len(tokens)), observation_span=end, text=reply.text, action=action
    )
    return replace(
        trajectory,
        turns=(*trajectory.turns[:-1], turn),
        token_ids=tokens,
        logprobs=np.concatenate([trajectory.logprobs[:start], unknown]),
        answer=reply.answer,
        citations=(source.number,),
        status=Status.ANSWERED,
        stop_reason=StopReason.ANSWER,
    )


def _well_formed(trajectory: Trajectory) -> Trajectory:
    """The same with no loss on malformed replies."""
    turns = tuple(
        replace(turn, sampled=turn.sampled and turn.action.kind is not ActionKind.MALFORMED)
        for turn in trajectory.turns
    )
    return replace(trajectory, turns=turns)


def comparable(
    found: Iterable[Trajectory], wanted: Wanted, template: ChatTemplate, *base: str
) -> Chosen:
    """Episodes whose draw is known token by token, so that another policy can learn from them.

    One draw that was stored twice counts once; equal tokens of two seeds are two draws.

    Args:
        found: logged.
        wanted: names policies; its threshold does not matter.
        template: tokenizer of the model to be trained.
        base: its name, and the version of its weights.
    """
    out, seen = Chosen(), set[tuple[object, ...]]()
    for trajectory in found:
        reason = unfit(trajectory, template, (*base, *wanted.policies)) or _undrawn(trajectory)
        if not reason and wanted.reward and wanted.reward not in trajectory.rewards:
            reason = f"no reward '{wanted.reward}' attached"
        draw = _draw(trajectory)
        if not reason and draw in seen:
            reason = "the same draw as another one"
        if reason:
            out.left_out.append(LeftOut(trajectory.id, reason))
        else:
            seen.add(draw)
            out.used.append(trajectory)
    return out


def _draw(trajectory: Trajectory) -> tuple[object, ...]:
    """What two records of one draw share."""
    task, tokens = trajectory.task, trajectory.token_ids.tobytes()
    return task.id, task.question, trajectory.policy, trajectory.seed, tokens


def _undrawn(trajectory: Trajectory) -> str:
    """Why the recorded log-probabilities are not those of the draw."""
    if np.isnan(trajectory.logprobs[trajectory.sampled]).any():
        return "a sampled token without log-probability"
    if trajectory.sampling.temperature != 1.0 or trajectory.sampling.truncated:
        return "not drawn at temperature 1 untruncated: its log-probabilities are not the draw's"
    return ""


def played_under(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Of the agent's settings `tools`, `format` and `rule` those that all records tell alike."""
    told: dict[str, set[Any]] = {
        "tools": {one.tools for one in trajectories},
        "format": {one.versions.get("format", "") for one in trajectories},
        "rule": {one.versions.get("rule", "") for one in trajectories},
    }
    alike = {name: values.pop() for name, values in told.items() if len(values) == 1}
    known = {"format": tuple(FORMATS), "rule": tuple(ContextRule)}
    return {
        name: value for name, value in alike.items() if value and value in known.get(name, (value,))
    }


def by_task(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """Trajectories of one task together, in order of appearance, whatever groups they were played in."""
    found: dict[tuple[str, str], list[Trajectory]] = {}
    for one in trajectories:
        found.setdefault((one.task.id, one.task.question), []).append(one)
    return list(found.values())
