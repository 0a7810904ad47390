"""Gold answers as something to learn from: forced where each trajectory's last call stood.

Information gain pays a turn for how much likelier it made the gold answer, and its sum over a trajectory
telescopes to how likely the answer was in the end. The gradient of that expectation has two halves: the
turns that led there (the policy gradient, which credit is for), and the answer's own likelihood in the
place that was reached, which needs no sampling. `loss.likelihood` is the second half.

Source: JEPO (arXiv 2503.19618), its bound of one sample, with all that an episode did before its answer
as the chain of thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from agent.policies.chat import ChatTemplate
from agent.trajectory import Trajectory
from rl.probes import Probe, Wrapper, make_probe
from rl.tree import TokenTree

if TYPE_CHECKING:
    from rl.assess import Assessed

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Forced:
    """The gold answers of one tree: j tokens, end to end.

    Attributes:
        place: int64[j]: where each token's row stands among the rows of the tree that are computed.
        shares: float32[j]: 1 over the tokens of its answer, so that the sum of shares times
            log-probabilities is the sum of the answers' means.
        answers: how many there are.
    """

    place: Ids
    shares: Floats
    answers: int


def gold_probes(assessed: Assessed, template: ChatTemplate) -> dict[str, Probe]:
    """By trajectory id, the gold answer of its question: the one that information gain is measured by.

    Args:
        assessed: with the probes of every trajectory in its context.
        template: whose tokens the trajectories are.

    Raises:
        RewardError: scores are missing.
    """
    gain, out = assessed.spec.gain, {}
    for group in assessed.groups:
        row, _ = gain.curves(group, assessed.context)
        probe = make_probe(template, group[0].task.answers[row], Wrapper(gain.before))
        out |= {trajectory.id: probe for trajectory in group}
    return out


def forced_call(trajectory: Trajectory, probe: Probe) -> Ids:
    """int64[n]: what the last call saw, and the gold answer behind it."""
    context = trajectory.prompt_of(trajectory.turns[-1]).astype(np.int64)
    return np.concatenate([context, probe.ids])


def rows_of(tree: TokenTree, first: int, probes: Sequence[Probe]) -> tuple[Ids, Floats]:
    """Rows of the answers' tokens, and their shares.

    Args:
        tree: of sequences that end in probes.
        first: number of the sequence of the first probe; the others follow in order.
        probes: as they were put in.
    """
    rows, shares = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for number, probe in enumerate(probes, start=first):
        own = tree.rows[number][-len(probe.ids) :][probe.answer]
        rows.append(own)
        shares.append(np.full(len(own), 1.0 / len(own), dtype=np.float32))
    return np.concatenate(rows), np.concatenate(shares)
