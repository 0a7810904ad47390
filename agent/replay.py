"""A running episode from a finished one: as it stood at the end of a turn, to go on from there.

Tokens, log-probabilities and context spans are taken from the record as they are; nothing is
tokenised again. What the record does not hold (messages, counters, what a verdict would be about)
follows from it by the rules of `agent.graph`. So the continuation is what the runtime would have
done: with the same policy at temperature 0 it is what it did.

Only where tokens are not to be had (a hosted API) or mean nothing (another tokenizer) is the
episode written anew, from the text of its replies and observations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from agent.episode import Episode
from agent.formats import observation_message, reply_message
from agent.graph import CONTEXT_FULL, OMITTED, SPENT, Setup, begin, close_turn
from agent.policies.base import Completion, FinishReason
from agent.trajectory import Action, ActionKind, Span, StopReason, Trajectory, Turn, join
from kg.errors import UsageError
from tools.base import MISLED, Observation
from tools.cassette import Take

Change: TypeAlias = Callable[[Observation], Observation]


class ReplayError(UsageError):
    """An episode that cannot be taken up again at that turn."""


def rebuild(done: Trajectory, turns: int, setup: Setup, change: Change | None = None) -> Episode:
    """The episode as it stood after its first `turns` turns.

    Args:
        done: the finished episode.
        turns: how many of its turns are kept; with 0 it stands at its first prompt.
        setup: policy, format, tools, rule and budgets under which it will go on; those of the
            episode, if what follows is to be what the runtime would have done.
        change: made to the observation of the last turn kept; the new one is rendered and tokenised
            as any other.

    Raises:
        ReplayError: there is no such turn, nothing follows it, its replies cannot be known from the
            record, its tokens do not follow from one another, or a tool that it called is missing.
    """
    check_turn(done, turns or 1)
    called = {turn.observation.tool for turn in done.turns[:turns] if turn.observation} - {""}
    if absent := sorted(called - set(setup.tools.names)):
        raise ReplayError(
            f"the episode {done.id[:8]} called the tool '{absent[0]}', which is not here"
        )
    exact = keeps_tokens(done, setup)
    episode = _opened(done, setup, exact)
    for place, turn in enumerate(done.turns[:turns]):
        assert turn.observation is not None
        episode = _replied(episode, turn, done, setup, exact)
        episode = _counted(episode, turn, done, setup)
        if change is not None and place == turns - 1:
            episode = close_turn(episode, setup, change(turn.observation))
            continue
        if exact:
            episode = _closed(episode, turn, done, setup)
        else:
            episode = close_turn(episode, setup, turn.observation)
        if _overflowed(turn.observation):
            episode = replace(episode, spent=StopReason.CONTEXT_LENGTH)
    return replace(episode, elapsed=_elapsed(done, turns))


def check_turn(done: Trajectory, turn: int) -> None:
    """See that an episode can go on after a turn, counted from 1.

    Raises:
        ReplayError: it cannot.
    """
    count = len(done.turns)
    if not 1 <= turn <= count:
        raise ReplayError(
            f"the episode {done.id[:8]} has no turn {turn}: it has {count}",
            f"agent trace show {done.id[:8]}",
        )
    for number, one in enumerate(done.turns[:turn], 1):
        if one.observation is None:
            ended = "ended the episode" if number == count else "has no observation"
            raise ReplayError(
                f"turn {number} of the episode {done.id[:8]} {ended}: nothing follows from it",
                f"choose a turn from 1 to {number - 1}" if number > 1 else "",
            )


def keeps_tokens(done: Trajectory, setup: Setup) -> bool:
    """Whether the recorded tokens are the policy's own: it sampled them, or its tokenizer reads
    every reply as it was read then."""
    template = setup.policy.template
    if template is None or not done.has_tokens:
        return False
    if done.policy == setup.policy_id:
        return True
    if int(done.token_ids.max()) >= len(template.tokenizer):
        return False
    replies = ((done.token_ids[slice(*turn.reply)].tolist(), turn.text) for turn in done.turns)
    return all(template.decode(ids) == text for ids, text in replies)


def takes(done: Trajectory) -> tuple[Take, ...]:
    """The tool calls of an episode with their results, for a cassette."""
    return tuple(
        Take(turn.action.name, turn.action.arguments, turn.observation, place)
        for place, turn in enumerate(done.turns)
        if turn.observation is not None
        and _ran(turn)
        and not _overflowed(turn.observation)  # the result itself is not in the record
    )


def _opened(done: Trajectory, setup: Setup, exact: bool) -> Episode:
    """The episode before its first turn."""
    misled = MISLED in done.versions
    fresh = Episode(
        done.task, seed=done.seed, group=done.group, history=done.history, misled=misled
    )
    opened = begin(fresh, setup)
    if not exact:
        return opened
    opening = done.token_ids[: done.turns[0].reply.start].tolist()
    written, _ = fresh.show(opening)
    return replace(written, messages=opened.messages)


def _replied(episode: Episode, turn: Turn, done: Trajectory, setup: Setup, exact: bool) -> Episode:
    """The episode with a turn's reply written and its action pending."""
    completion = _completion(turn, len(episode.turns) + 1, done, setup)
    context = episode.context
    if exact:
        ids = done.token_ids[slice(*turn.reply)].tolist()
        episode, span = episode.write(ids, done.logprobs[slice(*turn.reply)].tolist())
        if context != turn.context or span != turn.reply:
            raise _damaged(done, len(episode.turns))
    else:
        template = setup.policy.template
        if template is not None and completion.tool_calls:
            raise ReplayError(
                f"turn {len(episode.turns) + 1} is a server's own tool call: the policy "
                f"'{setup.policy.name}' has no text for it",
                "--policy with the server that sampled the episode",
            )
        episode, span = episode.write(template.encode(turn.text) if template else ())
        turn = replace(turn, sampled=turn.sampled and template is None)
    empty = Span(span.stop, span.stop)
    pending = replace(turn, context=context, reply=span, observation=None, observation_span=empty)
    shown, messages = (*context, span), (*episode.messages, reply_message(completion))
    return replace(episode, context=join(shown), messages=messages, pending=pending)


def _completion(turn: Turn, number: int, done: Trajectory, setup: Setup) -> Completion:
    """The reply of turn `number` as the policy gave it.

    The id and the spelling of a server's own tool call are not in the record: it is written anew.

    Raises:
        ReplayError: a native call that could not be carried out, of which nothing is left.
    """
    finish = next((one for one in FinishReason if one == turn.finish), FinishReason.STOP)
    plain = Completion(turn.text, finish=finish)
    if done.has_tokens:  # a policy that tells tokens writes its calls as text
        return plain
    action, read = turn.action, setup.format.parse(plain)
    if action.name and (read.kind, read.name) != (ActionKind.TOOL, action.name):
        arguments = json.dumps(action.arguments, ensure_ascii=False)
        call = {"id": f"call_{number}", "name": action.name, "arguments": arguments}
        return replace(plain, tool_calls=(call,))
    if action.kind is ActionKind.MALFORMED and not action.name and not _was_read(action, read):
        raise ReplayError(
            f"turn {number} was a tool call that could not be carried out, and the record does not "
            "hold what it said",
            f"choose a turn from 1 to {number - 1}" if number > 1 else "",
        )
    return plain


def _was_read(action: Action, read: Action) -> bool:
    """Whether a malformed action came from the reply's text: an answer may have been refused."""
    return read.kind is ActionKind.ANSWER or read == action


def _counted(episode: Episode, turn: Turn, done: Trajectory, setup: Setup) -> Episode:
    """The episode with a turn charged to its budgets."""
    seen = turn.observation
    assert seen is not None
    if turn.action.kind is ActionKind.MALFORMED:
        return replace(episode, repairs=episode.repairs + 1)
    if not seen.tool and seen.text == SPENT:
        reason = done.stop_reason if done.stop_reason.is_budget else StopReason.MAX_TOOL_CALLS
        return replace(episode, spent=reason)
    return replace(episode, tool_calls=episode.tool_calls + setup.tools[turn.action.name].counts)


def _closed(episode: Episode, turn: Turn, done: Trajectory, setup: Setup) -> Episode:
    """What `close_turn` makes of the recorded observation, with the recorded tokens."""
    seen = turn.observation
    assert seen is not None
    episode, _ = episode.cite(seen.sources)
    if seen.verdict is not None:
        episode = episode.judge(seen.verdict)
    note = done.token_ids[turn.reply.stop : turn.observation_span.start].tolist()
    if note and episode.judged is None:
        raise _damaged(done, len(episode.turns))
    if note and episode.judged is not None:
        hidden, at = episode.judged
        text = setup.format.render(Observation("", OMITTED))
        message = {**episode.messages[at], "content": text}
        episode = replace(episode.hide(hidden, at, note, message), judged=None)
    completion = _completion(turn, len(episode.turns) + 1, done, setup)
    message = observation_message(setup.format.role, setup.format.render(seen), completion)
    episode, span = episode.show(done.token_ids[slice(*turn.observation_span)].tolist(), message)
    if span != turn.observation_span:
        raise _damaged(done, len(episode.turns))
    if seen.tool and setup.tools[seen.tool].counts:
        episode = replace(episode, judged=(span, len(episode.messages) - 1), rejected=False)
    return replace(episode, turns=(*episode.turns, turn), pending=None)


def _elapsed(done: Trajectory, turns: int) -> float:
    """Seconds of wall time until the end of a turn."""
    if turns == 0:
        return 0.0
    if turns < len(done.turns):
        return done.turns[turns].started
    last = done.turns[turns - 1]
    return last.started + last.policy_seconds + last.tool_seconds


def _ran(turn: Turn) -> bool:
    """Whether a tool was really called."""
    seen = turn.observation
    return turn.action.kind is ActionKind.TOOL and seen is not None and bool(seen.tool)


def _overflowed(seen: Observation) -> bool:
    return seen.truncated and seen.text == CONTEXT_FULL and not seen.sources


def _damaged(done: Trajectory, place: int) -> ReplayError:
    return ReplayError(
        f"the tokens of turn {place + 1} of the episode {done.id[:8]} do not follow from the turns "
        "before it: it is damaged, or was not made by this runtime"
    )
