"""Trajectories to training rows: every reply once, in the context it was written in."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import (
    Action,
    ActionKind,
    Span,
    Status,
    StopReason,
    Trajectory,
    TrajectoryError,
    Turn,
    join,
)
from rl.packing import Row, pack, rows


@st.composite
def trajectories(draw):
    """Random episodes in which observations may be replaced by stubs, as the judge does."""
    size, context, turns = draw(st.integers(1, 6)), [], []
    context.append(Span(0, size))
    observed = None
    for _ in range(draw(st.integers(1, 6))):
        before = join(context)
        reply = Span(size, size + draw(st.integers(1, 4)))
        size = reply.stop
        if observed and observed.stop > observed.start and draw(st.booleans()):
            stub = Span(size, size + draw(st.integers(1, 2)))
            size = stub.stop
            context = [stub if span == observed else span for span in context]
        observed = Span(size, size + draw(st.integers(0, 5)))
        size = observed.stop
        context += [reply, observed]
        action = Action(ActionKind.TOOL, "search")
        turns.append(Turn(before, reply, observed, "", action, sampled=draw(st.booleans())))
    ids = np.arange(100, 100 + size, dtype=np.int32)
    return make(turns, ids)


def make(turns, ids):
    return Trajectory(
        Task.ask("q"), "p@1", 0, Sampling(), Status.ANSWERED, StopReason.ANSWER, tuple(turns), ids,
        np.full(len(ids), np.nan, dtype=np.float32),
    )  # fmt: skip


@given(trajectories())
def test_every_sampled_token_is_a_target_exactly_once(trajectory):
    targets = np.concatenate([row.ids[row.target] for row in rows(trajectory)] or [[]])
    expected = trajectory.token_ids[trajectory.sampled]
    assert sorted(targets) == sorted(expected)


@given(trajectories())
def test_every_reply_is_trained_in_the_context_it_was_written_in(trajectory):
    found = rows(trajectory)
    for turn in trajectory.turns:
        if not turn.sampled:
            continue
        reply = trajectory.token_ids[slice(*turn.reply)].tolist()
        whole = trajectory.prompt_of(turn).tolist() + reply
        holders = [
            row for row in found
            if row.ids[: len(whole)].tolist() == whole and row.target[len(whole) - 1]
        ]  # fmt: skip
        assert len(holders) == 1


@given(trajectories())
def test_turns_that_only_append_share_a_row(trajectory):
    """A row ends where the next turn no longer sees all that was before it."""
    heads, targets = [], []
    for turn in trajectory.turns:
        seen = [i for span in turn.context for i in range(*span)]
        if not heads or seen[: len(heads[-1])] != heads[-1]:
            heads.append([])
            targets.append(False)
        heads[-1] = [*seen, *range(*turn.reply)]
        targets[-1] |= turn.sampled
    expected = [
        trajectory.token_ids[head] for head, kept in zip(heads, targets, strict=True) if kept
    ]
    assert [row.ids.tolist() for row in rows(trajectory)] == [ids.tolist() for ids in expected]


@given(trajectories())
def test_the_first_token_of_a_row_is_never_a_target(trajectory):
    assert not any(row.target[0] for row in rows(trajectory))


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 40))
def test_packs_keep_all_rows_in_order_and_within_size(lengths, size):
    made = [Row(np.arange(n), np.ones(n, dtype=bool)) for n in lengths]
    packs = pack(made, size)
    assert [n for p in packs for n in p.lengths] == lengths
    assert all(len(p.ids) <= size or len(p.lengths) == 1 for p in packs)
    assert all(len(p.ids) + n.lengths[0] > size for p, n in itertools.pairwise(packs))
    for p in packs:
        assert p.positions.tolist() == [i for n in p.lengths for i in range(n)]


def test_an_episode_without_tokens_is_refused():
    turn = Turn((), Span(0, 0), Span(0, 0), "x", Action(ActionKind.ANSWER, text="x"))
    with pytest.raises(TrajectoryError, match="no token ids"):
        rows(make([turn], np.zeros(0, dtype=np.int32)))
