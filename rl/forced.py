"""Right replies as something to learn from, forced where each trajectory's last call stood.

Rewards that rise with the gold answer's likelihood, as information gain does, have two halves to their
gradient: the turns that led to where the answer is given (what credit is for), and the answer itself in
that place, which needs no sampling: it is written there and made likelier. `loss.likelihood` is the
second. It is done only where what was shown supports the answer; elsewhere it would teach to make
things up.

Source: JEPO (arXiv 2503.19618), its bound of one sample, with all that an episode did before its last
reply as the chain of thought. That the answer must be supported, and that the end of the reply is learnt
too, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agent.formats import TagsFormat
from agent.policies.chat import ChatTemplate
from agent.trajectory import ActionKind, Trajectory
from eval.metrics.text import contains
from rl.assess import Assessed
from rl.probes import Probe, Wrapper, make_probe
from rl.tree import TokenTree
from tools.base import Source, Toolbox

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

#: Action formats whose last reply is known here.
FORMATS = ("tags", "tool_call")
_NO_EVIDENCE = ("yes", "no", "true", "false")  # words that occur anywhere and support nothing


@dataclass(frozen=True)
class Forced:
    """The right replies of one tree: j tokens, end to end.

    Attributes:
        place: int64[j]: where each token's row stands among the rows of the tree that are computed.
        shares: float32[j]: 1 over the tokens of its reply, so that the sum of shares times
            log-probabilities is the sum of the replies' means.
        replies: how many there are.
    """

    place: Ids
    shares: Floats
    replies: int


def right_replies(assessed: Assessed, template: ChatTemplate) -> dict[str, Probe]:
    """By trajectory id, the right reply in the place of its last one; none where what its last call saw
    does not support the answer, or where the recipe's loss asks for none.

    Args:
        assessed: a batch.
        template: whose tokens the trajectories are.
    """
    if not assessed.spec.loss.likelihood:
        return {}
    made = ((t.id, right_reply(t, template)) for t in assessed.trajectories)
    return {id: reply for id, reply in made if reply is not None}


def right_reply(trajectory: Trajectory, template: ChatTemplate) -> Probe | None:
    """What the last call should have replied, its tokens behind the opening of an answer marked.

    Supported is an answer when all gold passages of the task are in what the last call saw; of a task
    that names none, when one of the passages there holds one of its answers.

    Returns:
        None where no answer is supported, or the last reply is not one that the policy began itself.
    """
    last, task = trajectory.turns[-1], trajectory.task
    if last.forced or not last.sampled or trajectory.versions.get("format", "tags") not in FORMATS:
        return None
    if last.action.kind not in (ActionKind.ANSWER, ActionKind.ABSTAIN):
        return None
    seen = shown(trajectory)
    answers = [answer.strip() for answer in task.answers if answer.strip()]
    held = [answer for answer in answers if any(holds(source, answer) for source in seen)]
    if task.evidence:
        gold = [source for source in seen if source.id in task.evidence]
        if not set(task.evidence) <= {source.id for source in gold}:
            return None
    else:
        held = [answer for answer in held if answer.lower() not in _NO_EVIDENCE]
        gold = [source for source in seen if held and holds(source, held[0])][:1]
    if not answers or not gold:
        return None
    return reply_with(trajectory, (held or answers)[0], gold, template)


def reply_with(
    trajectory: Trajectory, answer: str, sources: Sequence[Source], template: ChatTemplate
) -> Probe:
    """A last reply in the trajectory's action format, with sources to cite.

    Returns:
        All its tokens, those behind the opening of an answer marked.
    """
    numbers = ", ".join(str(n) for n in sorted({source.number for source in sources}))
    text = f"{plain(answer, template)} [{numbers}]"
    if trajectory.versions.get("format", "tags") == "tags":
        return make_probe(template, f"{text}</answer>", Wrapper(TagsFormat.final_prefix))
    made = make_probe(template, text, Wrapper(""))
    return replace(
        made, ids=np.append(made.ids, template.eos_id), answer=np.append(made.answer, True)
    )


def plain(answer: str, template: ChatTemplate) -> str:
    """An answer that can pass for no action and no special token."""
    return TagsFormat(Toolbox()).neutralise(template.neutralise(answer.strip()))


def shown(trajectory: Trajectory) -> list[Source]:
    """The sources that the last call saw, the latest observation first."""
    found: list[Source] = []
    for turn in reversed(trajectory.turns[:-1]):
        start = turn.observation_span.start
        within = any(s.start <= start < s.stop for s in trajectory.turns[-1].context)
        if turn.observation is not None and within:
            found += turn.observation.sources
    return found


def holds(source: Source, answer: str) -> bool:
    """Whether a passage or its title says an answer."""
    return contains(f"{source.title}\n{source.text}", answer)


def forced_call(trajectory: Trajectory, reply: Probe) -> Ids:
    """int64[n]: what the last call saw, and the right reply behind it."""
    context = trajectory.prompt_of(trajectory.turns[-1]).astype(np.int64)
    return np.concatenate([context, reply.ids])


def rows_of(tree: TokenTree, first: int, replies: Sequence[Probe]) -> tuple[Ids, Floats]:
    """Rows of the replies' marked tokens, and their shares.

    Args:
        tree: of sequences that end in replies.
        first: number of the sequence of the first reply; the others follow in order.
        replies: as they were put in.
    """
    rows, shares = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for number, reply in enumerate(replies, start=first):
        own = tree.rows[number][-len(reply.ids) :][reply.answer]
        rows.append(own)
        shares.append(np.full(len(own), 1.0 / len(own), dtype=np.float32))
    return np.concatenate(rows), np.concatenate(shares)
