"""An assessed batch as token trees: what one forward and backward pass of the learner reads.

Every policy call is one sequence, its context and its reply; the calls of a group become one tree, in
which all that they share lies once. A sampled token is a loss token in exactly the context that it was
sampled in, also where two rollouts sampled the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.trajectory import Trajectory
from rl.assess import Assessed
from rl.imitation import NO_REPLIES, Replies, RightReplies, call_with, rows_of
from rl.reduction import Aggregation
from rl.tree import TokenTree, build_tree

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TreeBatch:
    """One pass: m rows of the tree are computed, k loss tokens read them.

    Attributes:
        tree: the tokens.
        rows: int64[m], ascending: rows whose log-probabilities are wanted.
        place: int64[k]: where each loss token's row stands in `rows`.
        sequence: int64[k]: number of its trajectory in the whole batch.
        advantages: float32[k].
        behaviour: float32[k]: log-probability by the engine that sampled it, nats; NaN if unknown.
        where: per trajectory its number and int64[its loss tokens], positions in its `token_ids`; end
            to end they are the k tokens in order.
        right: right replies to learn from besides; None for none.
    """

    tree: TokenTree
    rows: Ids
    place: Ids
    sequence: Ids
    advantages: Floats
    behaviour: Floats
    where: tuple[tuple[int, Ids], ...]
    right: RightReplies | None = None

    def __len__(self) -> int:
        return len(self.place)

    @property
    def silent(self) -> bool:
        """Whether every advantage is 0, so that the policy loss has no gradient here."""
        return not self.advantages.any()


@dataclass(frozen=True)
class UpdateBatch:
    """What one optimizer step reads.

    Attributes:
        trees: one a pass.
        tokens, sequences: loss tokens and trajectories that have any, of the whole step, the silent
            trees' included: what losses are divided by.
        replies: right replies to learn from, of the whole step.
    """

    trees: tuple[TreeBatch, ...]
    tokens: int
    sequences: int
    replies: int = 0

    def divisor(self, how: Aggregation) -> float:
        """What a sum over the whole step is divided by; see `rl.losses.Reduction`."""
        return float(self.tokens if how == "token-mean" else self.sequences)


def lay_out(assessed: Assessed, most: int, right: Replies = NO_REPLIES) -> tuple[TreeBatch, ...]:
    """Trees of all groups, in order.

    Args:
        assessed: groups with their advantages.
        most: tokens of one tree; a trajectory that has more has one of its own.
        right: by trajectory id, right replies to learn from besides; see `rl.imitation.right_replies`.
    """
    out: list[TreeBatch] = []
    number = 0
    for group in assessed.groups:
        numbered = list(enumerate(group, start=number))
        out += [_tree(assessed, part, right) for part in parts(numbered, most, right)]
        number += len(group)
    return tuple(tree for tree in out if len(tree))


def minibatches(
    trees: Sequence[TreeBatch], count: int, order: Sequence[int] | None = None
) -> list[UpdateBatch]:
    """Trees dealt into optimizer steps of about equally many loss tokens.

    Args:
        trees: of a batch.
        count: steps; fewer where there are fewer trees.
        order: in which they are dealt; their own when None.
    """
    dealt = [trees[i] for i in (range(len(trees)) if order is None else order)]
    total, seen = sum(map(len, dealt)), 0
    steps: list[list[TreeBatch]] = [[] for _ in range(count)]
    for tree in dealt:
        steps[seen * count // total].append(tree)
        seen += len(tree)
    return [update_batch(step) for step in steps if step]


def update_batch(trees: Sequence[TreeBatch]) -> UpdateBatch:
    """One optimizer step over trees."""
    numbers = {int(number) for tree in trees for number in np.unique(tree.sequence)}
    replies = sum(tree.right.count for tree in trees if tree.right is not None)
    return UpdateBatch(tuple(trees), sum(map(len, trees)), len(numbers), replies)


Numbered = tuple[int, Trajectory]


class Reply(NamedTuple):
    """What a policy call sampled: int64 positions in the `token_ids` of a numbered trajectory, and the
    call's number among the sequences of its tree."""

    number: int
    turn: int
    call: int
    tokens: Ids


def parts(
    group: Sequence[Numbered], most: int, right: Replies = NO_REPLIES
) -> Iterator[list[Numbered]]:
    """Trajectories, in order, whose tree holds at most `most` tokens; a longer one stands alone."""
    part: list[Numbered] = []
    for item in group:
        if part and len(calls_tree([*part, item], right)[0]) > most:
            yield part
            part = []
        part.append(item)
    if part:
        yield part


def calls_tree(
    part: Sequence[Numbered], right: Replies = NO_REPLIES
) -> tuple[TokenTree, list[Reply], Ids]:
    """The policy calls of trajectories as one tree.

    Args:
        part: numbered trajectories.
        right: by trajectory id, the reply to learn where its last call stood: one more sequence each, in
            order behind all the calls.

    Returns:
        The tree, the sampled replies in order, and int64[k], the rows of all their tokens, end to end.
    """
    sequences: list[Ids] = []
    replies: list[Reply] = []
    for number, trajectory in part:
        for index, turn in enumerate(trajectory.turns):
            reply = np.arange(turn.reply.start, turn.reply.stop)
            if turn.sampled and len(reply):
                replies.append(Reply(number, index, len(sequences), reply))
                context = trajectory.prompt_of(turn).astype(np.int64)
                sequences.append(np.concatenate([context, trajectory.token_ids[reply]]))
    sequences += [call_with(t, right[t.id]) for _, t in part if t.id in right]
    tree = build_tree(sequences)
    rows = [tree.rows[reply.call][-len(reply.tokens) :] for reply in replies]
    return tree, replies, _joined(rows)


def _tree(assessed: Assessed, part: Sequence[Numbered], right: Replies) -> TreeBatch:
    tree, replies, rows = calls_tree(part, right)
    learnt = [right[t.id] for _, t in part if t.id in right]
    learnt_rows, shares = rows_of(tree, len(replies), learnt)
    unique, inverse = np.unique(_joined([rows, learnt_rows]), return_inverse=True)
    place = inverse.astype(np.int64).reshape(-1)
    behaviour = {number: trajectory.logprobs for number, trajectory in part}
    return TreeBatch(
        tree=tree,
        rows=unique,
        place=place[: len(rows)],
        sequence=_joined([np.full(len(reply.tokens), reply.number) for reply in replies]),
        advantages=_of(dict(enumerate(assessed.credit.advantages)), replies),
        behaviour=_of(behaviour, replies),
        where=tuple((reply.number, reply.tokens) for reply in replies),
        right=RightReplies(place[len(rows) :], shares, len(learnt)) if learnt else None,
    )


_NONE: Floats = np.zeros(0, dtype=np.float32)


def _joined(runs: Sequence[npt.NDArray[np.int64]]) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *runs])


def _of(values: Mapping[int, npt.NDArray[Any]], replies: Sequence[Reply]) -> Floats:
    """float32[k]: per-trajectory numbers at the loss tokens."""
    found = [np.asarray(values[r.number][r.tokens], dtype=np.float32) for r in replies]
    return np.concatenate([_NONE, *found])
