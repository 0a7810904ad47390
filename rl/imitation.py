"""Right replies as a term of the loss: written where a trajectory's last call stood, and made likelier.

Rewards that rise with the gold answer's likelihood, as information gain does, have two halves to their
gradient: the turns that led to where the answer is given (what credit is for), and the answer itself in
that place, which needs no sampling. `loss.likelihood` is after the second.

Source: JEPO (arXiv 2503.19618), its bound of one sample, with all that an episode did before its last
reply as the chain of thought. That the answer must be supported (`rl.replies`), and that the end of the
reply is learnt too, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from agent.policies.chat import ChatTemplate
from agent.trajectory import Trajectory
from rl.replies import RightReply, right_reply
from rl.tree import TokenTree

if TYPE_CHECKING:
    from rl.assess import Assessed

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
#: By trajectory id.
Replies = Mapping[str, RightReply]
NO_REPLIES: Replies = MappingProxyType({})


@dataclass(frozen=True)
class RightReplies:
    """The right replies of one tree: j tokens that are learnt, end to end.

    Attributes:
        place: int64[j]: where each token's row stands among the rows of the tree that are computed.
        shares: float32[j]: 1 over the tokens of its reply, so that the sum of shares times
            log-probabilities is the sum of the replies' means.
        count: how many replies.
    """

    place: Ids
    shares: Floats
    count: int


def right_replies(assessed: Assessed, template: ChatTemplate) -> Replies:
    """The right replies of a batch; none where the recipe's loss asks for none.

    Args:
        assessed: a batch.
        template: whose tokens the trajectories are.
    """
    if not assessed.spec.loss.likelihood:
        return NO_REPLIES
    made = ((t.id, right_reply(t, template)) for t in assessed.trajectories)
    return {id: reply for id, reply in made if reply is not None}


def call_with(trajectory: Trajectory, reply: RightReply) -> Ids:
    """int64[n]: what the last call saw, and a reply behind it."""
    context = trajectory.prompt_of(trajectory.turns[-1]).astype(np.int64)
    return np.concatenate([context, reply.ids])


def rows_of(tree: TokenTree, first: int, replies: Sequence[RightReply]) -> tuple[Ids, Floats]:
    """Rows of the replies' learnt tokens, and their shares.

    Args:
        tree: of sequences that end in replies.
        first: number of the sequence of the first reply; the others follow in order.
        replies: as they were put in.
    """
    rows, shares = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for number, reply in enumerate(replies, start=first):
        own = tree.rows[number][-len(reply.ids) :][reply.learnt]
        rows.append(own)
        shares.append(np.full(len(own), 1.0 / len(own), dtype=np.float32))
    return np.concatenate(rows), np.concatenate(shares)
