"""`agent trace fork`: an episode taken up again after one of its turns, and the turn's worth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.cassette import open_cassette
from agent.console.ask import InterruptedRunError
from agent.episode import ContextRule, Episode
from agent.graph import Setup
from agent.intervention import with_call, with_text, without_observation
from agent.policies.base import Policy
from agent.policies.registry import policy_of
from agent.replay import check_turn, keeps_tokens, rebuild
from agent.session import make_setup
from agent.settings import Settings
from agent.store import TrajectoryStore
from agent.trajectory import Trajectory
from eval.analyses.counterfactual import FACTUAL, Counterfactual, compare_arms
from eval.metrics import scorer
from kg.errors import PolicyUnavailableError, UsageError
from kg.plain_text import printable
from kg.strict_json import dumps
from tools.base import Toolbox
from tools.cassette import CassetteTool
from tools.progress import bar

Notify = Callable[[str], None]


class ForkRequest(BaseModel):
    """What is to be asked of an episode.

    Attributes:
        turn: after which it is taken up, from 1 as `agent trace show` counts.
        without_observation, replace, replace_query: the other arm, with nothing found, another
            observation, or another call of the same tool; only the factual arm when none is given.
        samples: continuations an arm.
        temperature: of their sampling.
        seed: of the first; each arm has the same.
        scorer: by name.
        policy: instead of the one that sampled the episode; None for that.
        tools: that may be asked what is not on the cassette; None for all with the episode's own
            data.
        own_corpus: whether the corpus of the settings was chosen for this.
        concurrency: episodes at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int = Field(ge=1)
    without_observation: bool = False
    replace: str | None = None
    replace_query: str | None = None
    samples: int = Field(8, ge=1)
    temperature: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0)
    scorer: str = "squad2"
    policy: str | None = None
    tools: tuple[str, ...] | None = None
    own_corpus: bool = False
    concurrency: int = Field(8, ge=1)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the other arms that are asked for; more than one is too many."""
        asked = (
            ("without its observation", self.without_observation),
            ("with another observation", self.replace is not None),
            ("with another call", self.replace_query is not None),
        )
        return tuple(name for name, wanted in asked if wanted)


@dataclass(frozen=True)
class Fork:
    """A fork and its result.

    Attributes:
        turns: of the episode.
        policy, sampled_by: `name@version` of the policy that finished it, and that began it.
        gold: accepted answers; `answerable` is False where abstaining is right.
        exact: whether the tokens are the record's; else the episode was written anew from its text.
        calls: tool calls that came from the cassette (`replayed`), went to the tools (`ran`), or
            could do neither (`missed`).
        notes: what a reader must know of the tools and the policy.
    """

    id: str
    question: str
    gold: tuple[str, ...]
    answerable: bool | None
    turn: int
    turns: int
    policy: str
    sampled_by: str
    temperature: float
    scorer: str
    exact: bool
    calls: dict[str, int]
    notes: tuple[str, ...]
    result: Counterfactual


def fork(
    store: TrajectoryStore,
    id: str,
    options: Mapping[str, Any],
    settings: Settings,
    as_json: bool,
    notify: Notify,
) -> tuple[str, int]:
    """Take up an episode of a store; gives the text for stdout and the exit code.

    Args:
        store: where it lies.
        id: of it, or the beginning of its id.
        options: fields of `ForkRequest`.
        settings: corpus, budgets, models folder; policy, format, rule and token limits are the
            episode's.
        as_json: whether the text is JSON.
        notify: gets one line a stage.

    Raises:
        UsageError: an option out of range, no such episode or turn, or another policy than the
            episode's that was not asked for.
        PolicyUnavailableError, ToolUnavailableError: as far as they are needed.
    """
    try:
        request = ForkRequest(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).replace("_", "-")
        raise UsageError(f"--{name}: {problem['msg']}") from error
    done = store.get(id)
    _check(request, done)
    own = _own(done, request, settings)
    try:
        tools, notes = open_cassette(done, own, request.tools, request.own_corpus, notify)
        policy = _policy(done, request, own, notify)
        with bar(lines=True) as advance:
            found = asyncio.run(_fork(done, request, own, (tools, policy), notes, advance))
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted") from None
    text = dumps(asdict(found)) if as_json else render(found)
    return text, 130 if found.result.interrupted else 0


def _check(request: ForkRequest, done: Trajectory) -> None:
    """What can be wrong before a model is loaded."""
    scorer(request.scorer)
    check_turn(done, request.turn)
    if len(request.variants) > 1:
        raise UsageError(
            "--without-observation, --replace and --replace-query are different arms", "choose one"
        )
    if request.samples > 1 and request.temperature == 0:
        raise UsageError("several samples at temperature 0 are all the same", "-n 1")


def _own(done: Trajectory, request: ForkRequest, settings: Settings) -> Settings:
    """The settings with what the record knows better."""
    name = done.policy.rpartition("@")[0] or done.policy
    values: dict[str, Any] = {"policy": request.policy or name}
    if "format" in done.versions:
        values["format"] = done.versions["format"]
    if (rule := done.versions.get("rule", settings.rule.value)) not in set(ContextRule):
        raise UsageError(
            f"the episode was made under the context rule '{rule}', which is not known"
        )
    values["rule"] = ContextRule(rule)
    return settings.model_copy(update=values)


def _policy(done: Trajectory, request: ForkRequest, settings: Settings, notify: Notify) -> Policy:
    """The policy that goes on.

    Raises:
        UsageError: it is not the episode's, and was not asked for.
        PolicyUnavailableError: the episode's own policy cannot be had.
    """
    name, _, version = done.policy.rpartition("@")
    if request.policy is None and version == "remote":
        raise UsageError(
            f"the episode was sampled by '{name}' on a server",
            f"add --policy http(s)://SERVER/v1 --model {name}",
        )
    try:
        policy = policy_of(settings, notify)
    except UsageError as error:
        if request.policy is not None:
            raise
        raise PolicyUnavailableError(
            f"the policy that sampled the episode cannot be had: {error.message}",
            "--policy NAME goes on with another",
        ) from error
    if request.policy is None and policy.version != version:
        raise UsageError(
            f"the episode was sampled by {done.policy}; this is {policy.name}@{policy.version}",
            f"--policy {policy.name} goes on with it all the same",
        )
    return policy


async def _fork(
    done: Trajectory,
    request: ForkRequest,
    settings: Settings,
    parts: tuple[Toolbox, Policy],
    notes: list[str],
    advance: Callable[[str, int, int], None],
) -> Fork:
    tools, policy = parts
    try:
        setup = make_setup(settings, policy, tools)
        sampling = replace(done.sampling, temperature=request.temperature)
        setup = replace(setup, sampling=sampling)
        arms = {FACTUAL: rebuild(done, request.turn, setup)}
        for name in request.variants:
            arms[name] = await _other(done, request, setup)
        result = await compare_arms(
            arms,
            setup,
            request.samples,
            request.seed,
            request.scorer,
            request.concurrency,
            advance,
        )
    finally:
        await policy.aclose()
    return _told(done, request, setup, notes, result)


async def _other(done: Trajectory, request: ForkRequest, setup: Setup) -> Episode:
    """The other arm's episode."""
    if request.replace_query is not None:
        return await with_call(done, request.turn, setup, request.replace_query)
    change = without_observation if request.replace is None else with_text(request.replace)
    return rebuild(done, request.turn, setup, change)


def _told(
    done: Trajectory,
    request: ForkRequest,
    setup: Setup,
    notes: list[str],
    result: Counterfactual,
) -> Fork:
    cassettes = [tool for tool in setup.tools if isinstance(tool, CassetteTool)]
    exact = keeps_tokens(done, setup)
    if setup.policy_id != done.policy:
        notes = [f"{setup.policy_id} goes on with what {done.policy} began", *notes]
    if done.has_tokens and not exact:
        notes = [
            "the policy reads other tokens: the episode was written anew from its text",
            *notes,
        ]
    return Fork(
        id=done.id,
        question=done.task.question,
        gold=done.task.answers,
        answerable=done.task.answerable,
        turn=request.turn,
        turns=len(done.turns),
        policy=setup.policy_id,
        sampled_by=done.policy,
        temperature=request.temperature,
        scorer=request.scorer,
        exact=exact,
        calls={
            name: sum(getattr(tool, name) for tool in cassettes)
            for name in ("replayed", "ran", "missed")
        },
        notes=tuple(notes),
        result=result,
    )


def render(found: Fork) -> str:
    """The result as plain text."""
    result, calls = found.result, found.calls
    gold = ", ".join(found.gold) or ("abstain" if found.answerable is False else "not known")
    lines = [
        f"episode  {found.id}, after turn {found.turn} of {found.turns}",
        f"question {found.question}",
        f"gold     {gold}",
        f"policy   {found.policy}, temperature {found.temperature:g}",
        *(f"note     {note}" for note in found.notes),
        "",
    ]
    for arm in result.arms:
        value = "" if arm.value is None else f"value {arm.value:.2f}, "
        lines.append(f"{arm.name}: {value}{arm.within_budget} of {result.finished} within budget")
        if result.finished:
            lines[-1] += f", {arm.tokens:.0f} tokens and {arm.turns:.1f} turns on average"
        lines += [f"  {times:>3} x {answer}" for answer, times in arm.answers.items()]
    lines += ["", *_worth(found.turn, result)]
    lines.append(
        f"tool calls: {calls['replayed']} from the cassette, {calls['ran']} by the tools, "
        f"{calls['missed']} not on the cassette"
    )
    return printable("\n".join(lines))


def _worth(turn: int, result: Counterfactual) -> list[str]:
    lines = []
    if result.interrupted:
        lines.append(f"interrupted: {result.finished} of {result.samples} samples are finished")
    if result.failed:
        lines.append(f"{result.failed} continuations failed and are left out")
    if result.worth is None:
        return lines
    text = f"turn {turn} was worth {result.worth:+.2f}"
    if result.interval is not None:
        low, high = result.interval.low, result.interval.high
        text += f" [{low:+.2f}, {high:+.2f}], 95 % over {result.finished} paired samples"
    return [*lines, text]
