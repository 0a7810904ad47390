"""The LangGraph state machine of an episode.

    START → policy ─┬─ <tool family> ─┐
              ▲     ├─ repair ────────┤
              │     └─ finish → END   │
              └───────────────────────┘

One node a tool family, made from the toolbox: a new tool plugs in without a change here. Each node
takes an `Episode` and gives a changed one; everything a run needs besides (policy, format, budgets)
is its `Setup`, passed as LangGraph's context.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from agent.episode import Budgets, ContextRule, Episode
from agent.events import ActionEvent, AnswerEvent, Event, ObservationEvent, TokenEvent
from agent.formats import (
    ActionFormat,
    observation_message,
    render_history,
    reply_message,
    system_prompt,
)
from agent.misleading import withheld_now
from agent.policies.base import Completion, FinishReason, Policy, Request, Sampling
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Turn, join
from kg.errors import PolicyUnavailableError, ToolUnavailableError
from tools.base import FAULT, Observation, Source, Tool, Toolbox, ToolContext, ToolError

log = logging.getLogger(__name__)

OMITTED = "Omitted: judged not helpful."
SPENT = "No calls left. Answer now."
_URGE = "Give your final answer now, without calling a tool."
CONTEXT_FULL = "Omitted: no room left. Answer now."


class State(TypedDict):
    """The only channel: the episode itself."""

    episode: Episode


@dataclass(frozen=True)
class Setup:
    """What the nodes of a run share.

    Attributes:
        rule: what becomes of a rejected observation.
        tool_seconds: time-out of one tool call.
        observation_chars: cap of one observation's text.
        final_tokens, final_seconds: reserve for the forced answer after a budget is spent.
    """

    policy: Policy
    format: ActionFormat
    tools: Toolbox
    budgets: Budgets = field(default_factory=Budgets)
    sampling: Sampling = field(default_factory=Sampling)
    rule: ContextRule = ContextRule.OMIT
    system: str = field(default_factory=system_prompt)
    tool_seconds: float = 30.0
    observation_chars: int = 6000
    final_tokens: int = 64
    final_seconds: float = 60.0

    @property
    def policy_id(self) -> str:
        """`name@version` of the policy, as trajectories record it."""
        return f"{self.policy.name}@{self.policy.version}"

    def untimed(self) -> Setup:
        """The same without limits of time for the policy; a tool call keeps its own."""
        budgets = self.budgets.model_copy(update={"seconds": math.inf})
        return replace(self, budgets=budgets, final_seconds=math.inf)


Node = Callable[[State, Runtime[Setup]], Awaitable[State]]
Graph = CompiledStateGraph[State, Setup, State, State]


def build_graph(tools: Toolbox, checkpointer: Any = None) -> Graph:
    """Compile the state machine for a set of tools.

    Args:
        tools: each family becomes a node named `tool_<family>`.
        checkpointer: a LangGraph saver; None for runs that need no resumption.
    """
    builder = StateGraph(State, context_schema=Setup)
    builder.add_node("policy", policy_node)
    builder.add_node("repair", repair_node)
    builder.add_node("finish", finish_node)
    routes: dict[Hashable, str] = {"repair": "repair", "finish": "finish", "policy": "policy"}
    for family in tools.families:
        builder.add_node(f"tool_{family}", tool_node)
        builder.add_edge(f"tool_{family}", "policy")
        routes[family] = f"tool_{family}"
    builder.add_edge(START, "policy")
    builder.add_edge("repair", "policy")
    builder.add_edge("finish", END)
    families = {tool.name: tool.family for tool in tools}
    builder.add_conditional_edges(
        "policy", lambda state: next_node(state["episode"], families), routes
    )
    return builder.compile(checkpointer=checkpointer, name="turnwise")


def next_node(episode: Episode, families: dict[str, str]) -> str:
    """Where the parsed action leads."""
    if episode.status is not None:
        return "finish"
    if episode.pending is None:
        return "policy"
    action = episode.pending.action
    if action.kind is ActionKind.MALFORMED:
        return "repair" if not episode.spent else "finish"
    return families[action.name] if action.kind is ActionKind.TOOL else "finish"


async def policy_node(state: State, runtime: Runtime[Setup]) -> State:
    """Let the policy act; open a forced answer when a budget is spent."""
    setup, began = runtime.context, time.perf_counter()
    episode = state["episode"]
    if not episode.messages:
        episode = begin(episode, setup)
    reason = episode.spent or episode.over(setup.budgets)
    if reason is not None and not episode.opening:
        episode = replace(episode, spent=reason, opening=setup.format.final_prefix or " ")
        if setup.policy.template is not None and setup.format.final_prefix:
            episode, _ = episode.show(setup.policy.template.encode(setup.format.final_prefix))
        elif setup.policy.template is None:
            episode = replace(episode, messages=_urge(episode.messages))
        else:  # a format without an opening for the answer: a message asks for it
            ids = _between(setup, "user", _URGE, episode, len(episode.token_ids))
            episode, _ = episode.show(ids, {"role": "user", "content": _URGE})
    try:
        completion = await _generate(episode, setup, runtime.stream_writer)
    except PolicyUnavailableError as error:
        log.info("policy %s: %s", setup.policy.name, error.message)
        ended = episode.end(Status.FAILED, StopReason.POLICY_ERROR, error=_one_line(error))
        return {"episode": _tick(ended, began)}
    except TimeoutError:
        return {"episode": _tick(_out_of_time(episode), began)}
    except Exception as error:  # an engine's own; the turns so far are worth keeping
        cause = f"{type(error).__name__}: {error}"
        log.error(
            "policy %s: %s", setup.policy.name, cause, exc_info=log.isEnabledFor(logging.DEBUG)
        )
        ended = episode.end(Status.FAILED, StopReason.POLICY_ERROR, error=" ".join(cause.split()))
        return {"episode": _tick(ended, began)}
    return {"episode": _tick(_acted(episode, setup, completion, runtime, began), began)}


def begin(episode: Episode, setup: Setup) -> Episode:
    """Write the opening: system prompt, earlier conversation, question."""
    template = setup.policy.template

    def neutral(text: str) -> str:
        broken = setup.format.neutralise(text)
        return template.neutralise(broken) if template else broken

    history = [{**m, "content": neutral(m["content"])} for m in render_history(episode.history)]
    system = {"role": "system", "content": setup.format.system(setup.system)}
    question = {"role": "user", "content": neutral(episode.task.question)}
    messages = (system, *history, question)
    ids = template.opening(messages, setup.format.schemas) if template else ()
    opened, _ = episode.show(ids)
    return replace(opened, messages=messages)


async def _generate(episode: Episode, setup: Setup, write: Callable[[Event], None]) -> Completion:
    """One policy call within what is left of the budgets.

    Raises:
        TimeoutError: the episode's time is up.
        PolicyUnavailableError: the engine cannot answer, or the prompt does not fit.
    """
    turn = len(episode.turns)
    forced = bool(episode.opening)
    here = contextvars.copy_context()  # an engine calls back from outside LangGraph's context
    request = Request(
        messages=episode.messages,
        token_ids=tuple(_visible(episode)) if setup.policy.template else (),
        sampling=replace(
            setup.sampling,
            seed=(episode.seed * 1_000_003 + turn) % 2**31,
            max_tokens=_room(episode, setup, forced),
        ),
        stop=setup.format.stop,
        tools=() if forced else setup.format.schemas,
        on_text=lambda text: here.run(write, TokenEvent(turn, text)),
    )
    left = setup.budgets.seconds - episode.elapsed
    deadline = setup.final_seconds if forced else max(left, 0.001)
    return (await asyncio.wait_for(setup.policy.generate([request]), deadline))[0]


def _visible(episode: Episode) -> list[int]:
    return [
        token for span in episode.context for token in episode.token_ids[span.start : span.stop]
    ]


def _room(episode: Episode, setup: Setup, forced: bool) -> int:
    """How many tokens the reply may have."""
    left = setup.budgets.tokens - episode.sampled_tokens
    wanted = setup.final_tokens if forced else min(setup.sampling.max_tokens, left)
    if setup.policy.template is None or not setup.policy.context_length:
        return max(wanted, 1)
    size = sum(span.stop - span.start for span in episode.context)
    room = setup.policy.context_length - size
    if room < 1:
        raise PolicyUnavailableError(
            f"the prompt has {size} tokens; the policy reads {setup.policy.context_length}",
            "ask a shorter question or use a policy with a longer context",
        )
    return max(min(wanted, room), 1)


def _acted(
    episode: Episode, setup: Setup, completion: Completion, runtime: Runtime[Setup], began: float
) -> Episode:
    """The episode with the reply written and its action parsed."""
    forced = bool(episode.opening)
    action = _allowed(episode, setup.format.parse(completion, episode.opening.strip()))
    if forced and action.kind in (ActionKind.MALFORMED, ActionKind.TOOL):
        action = _salvage(completion.text)
    context = join(episode.context)
    grown, span = episode.write(completion.token_ids, completion.logprobs)
    turn = Turn(
        context=context,
        reply=span,
        observation_span=Span(span.stop, span.stop),
        text=completion.text,
        action=action,
        sampled=completion.sampled,
        forced=forced,
        finish=completion.finish.value,
        reasoning=completion.reasoning,
        prompt_tokens=completion.prompt_tokens,
        reply_tokens=len(completion.token_ids) or completion.reply_tokens,
        policy_seconds=time.perf_counter() - began,
        started=episode.elapsed,
    )
    runtime.stream_writer(ActionEvent(len(episode.turns), action))
    return replace(
        grown,
        context=join((*grown.context, span)),
        messages=(*episode.messages, reply_message(completion)),
        pending=turn,
    )


def _allowed(episode: Episode, action: Action) -> Action:
    """Refuse what the rules of the game forbid: an answer straight after a rejection, and a verdict
    on nothing."""
    if action.kind is ActionKind.ANSWER and episode.rejected and not episode.opening:
        text = "you judged the last result unhelpful: search again or abstain"
        return replace(action, kind=ActionKind.MALFORMED, text=text)
    if action.kind is ActionKind.TOOL and action.name == "judge" and episode.judged is None:
        return replace(action, kind=ActionKind.MALFORMED, text="there is no result to judge yet")
    return action


def _salvage(text: str) -> Action:
    """The best answer in a forced reply that did not close its tag."""
    line = text.strip().split("\n")[0].split("<")[0].strip()
    if line:
        return Action(ActionKind.ANSWER, text=line)
    return Action(ActionKind.MALFORMED, text="the forced answer is empty")


async def tool_node(state: State, runtime: Runtime[Setup]) -> State:
    """Run the pending tool call and show what came back."""
    setup, began = runtime.context, time.perf_counter()
    episode = state["episode"]
    assert episode.pending is not None
    action = episode.pending.action
    tool = setup.tools[action.name]
    if tool.counts and (reason := _no_call(episode, action, tool, setup.budgets)):
        episode = replace(episode, spent=reason)
        return _answered(episode, setup, runtime, Observation("", SPENT), began)
    try:
        left = max(setup.budgets.seconds - episode.elapsed, 0.001)
        turn = len(episode.turns)
        context = ToolContext(episode.task.question, turn, withheld_now(episode))
        seen = await _call(setup, action, context, min(setup.tool_seconds, left))
    except ToolUnavailableError as error:
        ended = episode.end(
            Status.FAILED,
            StopReason.TOOL_UNAVAILABLE,
            error=_one_line(error),
            turns=(*episode.turns, episode.pending),
        )
        return {"episode": _tick(ended, began)}
    seen = replace(seen, seconds=time.perf_counter() - began)
    episode = replace(episode, tool_calls=episode.tool_calls + tool.counts)
    return _answered(episode, setup, runtime, seen, began)


async def _call(setup: Setup, action: Action, context: ToolContext, seconds: float) -> Observation:
    """One tool call of at most `seconds`; failures become observations, those of the machine marked.

    Raises:
        ToolUnavailableError: the tool cannot work at all.
    """
    tool = setup.tools[action.name]
    try:
        arguments = tool.check(action.arguments)
        return await asyncio.wait_for(tool.run(arguments, context), seconds)
    except TimeoutError:
        error = f"{tool.name} timed out after {seconds:.3g} s"
        return Observation(tool.name, error=error, data={FAULT: "timeout"})
    except ToolError as error:
        return Observation(tool.name, error=error.message)
    except ToolUnavailableError:
        raise
    except Exception as error:
        log.error("tool %s failed: %s", tool.name, error, exc_info=log.isEnabledFor(logging.DEBUG))
        kind = type(error).__name__
        return Observation(tool.name, error=f"{tool.name} failed: {kind}", data={FAULT: kind})


def _no_call(episode: Episode, action: Action, tool: Tool, budgets: Budgets) -> StopReason | None:
    """Why a counting tool call may not be made."""
    if episode.tool_calls >= budgets.tool_calls:
        return StopReason.MAX_TOOL_CALLS
    wanted = _compared(action, tool)
    calls = (turn.action for turn in episode.turns if turn.action.name == action.name)
    same = sum(_compared(call, tool) == wanted for call in calls)
    return StopReason.REPETITION if same > budgets.repeats else None


def _compared(action: Action, tool: Tool) -> dict[str, Any]:
    """A call's arguments as they are compared with those of another of the same tool."""
    if not tool.free_text:
        return action.arguments
    return {k: v.strip().lower() if isinstance(v, str) else v for k, v in action.arguments.items()}


async def repair_node(state: State, runtime: Runtime[Setup]) -> State:
    """Tell the policy what was wrong with its action."""
    began = time.perf_counter()
    episode = state["episode"]
    assert episode.pending is not None
    seen = Observation("", error=episode.pending.action.text)
    episode = replace(episode, repairs=episode.repairs + 1)
    return _answered(episode, runtime.context, runtime, seen, began)


def _answered(
    episode: Episode, setup: Setup, runtime: Runtime[Setup], seen: Observation, began: float
) -> State:
    """Close the pending turn with an observation, and tell of it."""
    closed = close_turn(episode, setup, seen)
    done = replace(closed.turns[-1], tool_seconds=time.perf_counter() - began)
    assert done.observation is not None
    runtime.stream_writer(ObservationEvent(len(episode.turns), done.observation))
    return {"episode": _tick(replace(closed, turns=(*closed.turns[:-1], done)), began)}


def close_turn(episode: Episode, setup: Setup, seen: Observation) -> Episode:
    """The episode with an observation written behind its pending turn, which is finished by it.

    Caps, citation numbers, the context rule and the context's length are seen to; counting the call
    is not.
    """
    assert episode.pending is not None
    turn = episode.pending
    known, seen = episode.sources, _capped(seen, setup)
    episode, sources = episode.cite(seen.sources)
    seen = replace(seen, sources=sources)
    episode = _judged(episode, setup, seen)
    episode, seen, span = _shown(episode, setup, seen)
    if not seen.sources:  # none was found, or none fitted: what was not shown cannot be cited
        episode = replace(episode, sources=known)
    if (
        seen.tool and setup.tools[seen.tool].counts
    ):  # a result; a verdict, even a wrong one, is none
        episode = replace(episode, judged=(span, len(episode.messages) - 1), rejected=False)
    done = replace(turn, observation=seen, observation_span=span)
    return replace(episode, turns=(*episode.turns, done), pending=None)


def _judged(episode: Episode, setup: Setup, seen: Observation) -> Episode:
    """Apply the context rule to a verdict."""
    if seen.verdict is None:
        return episode
    episode = episode.judge(seen.verdict)
    if not episode.rejected or setup.rule is ContextRule.SOFT or episode.judged is None:
        return episode
    span, at = episode.judged
    text = setup.format.render(Observation("", OMITTED))
    old = episode.messages[at]
    ids = _between(setup, old["role"], text, episode, span.start)
    return replace(episode.hide(span, at, ids, {**old, "content": text}), judged=None)


def _shown(episode: Episode, setup: Setup, seen: Observation) -> tuple[Episode, Observation, Span]:
    """Write a rendered observation; one that does not fit the context is replaced by a note."""
    assert episode.pending is not None
    completion = Completion(episode.pending.text, tool_calls=_native_calls(episode))
    message = observation_message(setup.format.role, setup.format.render(seen), completion)
    ids = _between(setup, message["role"], message["content"], episode, len(episode.token_ids))
    size = sum(span.stop - span.start for span in episode.context) + len(ids)
    limit = setup.policy.context_length
    if setup.policy.template and limit and size + setup.final_tokens > limit:
        seen = replace(
            seen, sources=(), text=CONTEXT_FULL, error=None, truncated=True, verdict=None
        )
        message = {**message, "content": setup.format.render(seen)}
        ids = _between(setup, message["role"], message["content"], episode, len(episode.token_ids))
        episode = replace(episode, spent=StopReason.CONTEXT_LENGTH)
    episode, span = episode.show(ids, message)
    return episode, seen, span


def _native_calls(episode: Episode) -> tuple[dict[str, str], ...]:
    """The native call in the last reply message, if it was one."""
    calls = episode.messages[-1].get("tool_calls", ())
    return tuple({"id": c["id"], **c["function"]} for c in calls)


def _between(setup: Setup, role: str, content: str, episode: Episode, at: int) -> list[int]:
    """Tokens of a message behind the reply that ends at position `at`."""
    template = setup.policy.template
    if template is None:
        return []
    last = episode.token_ids[at - 1] if at else None
    return template.between(role, template.neutralise(content), last)


def _capped(seen: Observation, setup: Setup) -> Observation:
    """Cut an observation to the cap: whole sources from the end first, then text."""
    cap = setup.observation_chars
    kept: list[Source] = []
    used = 0
    for source in seen.sources:
        used += len(source.text) + len(source.title)
        if used > cap and kept:
            break
        kept.append(replace(source, text=source.text[:cap]))
    error = seen.error and seen.error[:cap]
    whole = (tuple(kept), seen.text[:cap], error) == (seen.sources, seen.text, seen.error)
    return replace(
        seen,
        sources=tuple(kept),
        text=seen.text[:cap],
        error=error,
        truncated=seen.truncated or not whole,
    )


async def finish_node(state: State, runtime: Runtime[Setup]) -> State:
    """Settle status, answer and citations."""
    episode = state["episode"]
    if episode.status is None:
        episode = _settle(episode)
    assert episode.status is not None
    assert episode.stop_reason is not None
    runtime.stream_writer(
        AnswerEvent(episode.answer, episode.status, episode.stop_reason, episode.citations)
    )
    return {"episode": episode}


def _settle(episode: Episode) -> Episode:
    assert episode.pending is not None
    turn = episode.pending
    action, done = turn.action, {"turns": (*episode.turns, turn)}
    if action.kind is ActionKind.ABSTAIN and not episode.spent:
        return episode.end(Status.ABSTAINED, StopReason.ABSTAIN, error=action.text, **done)
    answer = action.text if action.kind is ActionKind.ANSWER else ""
    citations = tuple(n for n in action.citations if 1 <= n <= len(episode.sources))
    if not episode.spent:
        return episode.end(
            Status.ANSWERED, StopReason.ANSWER, answer=answer, citations=citations, **done
        )
    cut = not answer and turn.finish == FinishReason.LENGTH.value
    status = Status.TRUNCATED if cut else Status.OVER_BUDGET
    return episode.end(status, episode.spent, answer=answer, citations=citations, **done)


def _out_of_time(episode: Episode) -> Episode:
    """A policy call ran out of time: once, force an answer; twice, give up."""
    if episode.opening:
        return episode.end(Status.OVER_BUDGET, episode.spent or StopReason.MAX_SECONDS)
    return replace(episode, spent=StopReason.MAX_SECONDS)


def _urge(messages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Ask a chat-only policy for its final answer."""
    if messages[-1]["role"] == "user":
        return (
            *messages[:-1],
            {**messages[-1], "content": f"{messages[-1]['content']}\n\n{_URGE}"},
        )
    return (*messages, {"role": "user", "content": _URGE})


def _tick(episode: Episode, began: float) -> Episode:
    return replace(episode, elapsed=episode.elapsed + time.perf_counter() - began)


def _one_line(error: PolicyUnavailableError | ToolUnavailableError) -> str:
    return " ".join(f"{error.message}. {error.hint}".split()).rstrip(". ")
