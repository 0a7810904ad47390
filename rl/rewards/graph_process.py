"""Is the graph that the policy builds getting better, edge by edge? (GALAX)

Source: GALAX (arXiv 2509.20935; code FuhaiLiAiLab/GALAX), graph process reward:

    R_t = (p_t - 1/C) + lambda1 * mean_rollouts(p - 1/C) + lambda2 * V(G_t)

p is a classifier's probability of the target class on the graph after turn t, C its classes, and V is
0 when every edge of the graph is a reference edge and -1 otherwise.

No tool is imported. A turn that changes the graph is one whose observation's `data` holds
`target_probability` (0..1) and `edges` (pairs of node names: the whole graph after the turn), and
optionally `rollout_probabilities` (a list); other turns earn nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from agent.trajectory import Trajectory, Turn
from rl.rewards.base import (
    UNBOUNDED,
    Bools,
    Floats,
    Range,
    Reward,
    RewardError,
    Values,
    at_turns,
    nothing,
    unit,
)
from rl.rewards.context import Edge, Need, RewardContext
from rl.rewards.registry import register


def accepted(value: float) -> bool:
    """GALAX keeps a step only when its reward is above 0; else the graph stays as it was."""
    return value > 0.0


@register
class GraphProcess(Reward):
    """GALAX's reward of each graph, or its change from graph to graph.

    As published, a good graph is paid again at every further turn. The change telescopes: a trajectory
    earns what its last graph is worth over an empty one, however many turns it took.

    Attributes:
        form: `change` (default here) or `level` (as published).
        classes: of the classifier, C.
        rollout_weight: lambda1; without recorded rollouts the term is 0.
        edge_weight: lambda2, what the first edge outside the reference costs.
        directed: whether an edge must be in the reference in its own direction.
    """

    name: ClassVar[str] = "graph_process"
    source: ClassVar[str] = "GALAX 2509.20935 (code); the form `change`: own"
    form: Literal["change", "level"] = "change"
    classes: int = Field(2, ge=2)
    rollout_weight: float = Field(1.0, ge=0)
    edge_weight: float = Field(1.0, ge=0)
    directed: bool = False

    @property
    def range(self) -> Range:
        """Of the last graph, in the form `change`; levels add up without end."""
        if self.form == "level":
            return UNBOUNDED
        low, high = -1.0 / self.classes, 1.0 - 1.0 / self.classes
        weight = 1.0 + self.rollout_weight
        return Range(low * weight - self.edge_weight, high * weight)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The reference edges."""
        return (Need.EDGES,) if self.edge_weight else ()

    def given(self, trajectory: Trajectory) -> Bools:
        """Turns that change the graph."""
        return at_turns(trajectory, (t for t, turn in enumerate(trajectory.turns) if _record(turn)))

    def values(self, group: Sequence[Trajectory], context: RewardContext) -> Values:
        """R_t, or its changes, on the turns that change the graph."""
        reference = self._reference(group, context)
        return [self._row(trajectory, reference) for trajectory in group]

    def level(self, probability: float, rollouts: Sequence[float], valid: bool) -> float:
        """R of one graph from its target probability and those of its rollouts."""
        chance = 1.0 / self.classes
        ahead = float(np.mean(rollouts)) - chance if len(rollouts) else 0.0
        return probability - chance + self.rollout_weight * ahead - self.edge_weight * (not valid)

    def _reference(self, group: Sequence[Trajectory], context: RewardContext) -> set[Edge]:
        if not self.edge_weight:
            return set()
        if context.edges is None:
            raise RewardError("no reference edges", group[0].id)
        return {self._key(edge) for edge in context.edges}

    def _key(self, edge: Sequence[Any]) -> Edge:
        one, other = str(edge[0]), str(edge[1])
        return (one, other) if self.directed or one <= other else (other, one)

    def _row(self, trajectory: Trajectory, reference: Collection[Edge]) -> Floats:
        row, before = nothing(trajectory), 0.0
        for t, turn in enumerate(trajectory.turns):
            data = _record(turn)
            if not data:
                continue
            value = self._level(data, trajectory.id, t, reference)
            row[t] = value - before
            before = value if self.form == "change" else 0.0
        return row

    def _level(
        self, data: dict[str, Any], trajectory: str, turn: int, reference: Collection[Edge]
    ) -> float:
        """R of the graph that a turn recorded.

        Raises:
            RewardError: a part of the record is missing, or a probability is not one.
        """
        if "target_probability" not in data or "edges" not in data:
            raise RewardError("the graph needs target_probability and edges", trajectory, turn)
        edges = data["edges"]
        if not isinstance(edges, list) or any(
            not isinstance(edge, list | tuple) or len(edge) != 2 for edge in edges
        ):
            raise RewardError("edges are not pairs of node names", trajectory, turn)
        probability, rollouts = data["target_probability"], data.get("rollout_probabilities", [])
        if not isinstance(rollouts, list | tuple):
            raise RewardError("rollout_probabilities is no list", trajectory, turn)
        for p in (probability, *rollouts):
            unit(p, "the target probability", trajectory, turn)
        valid = not self.edge_weight or all(self._key(edge) in reference for edge in edges)
        return self.level(probability, rollouts, valid)


def _record(turn: Turn) -> dict[str, Any]:
    """What a turn recorded of the graph; empty where it left the graph alone."""
    data: dict[str, Any] = turn.observation.data if turn.observation else {}
    return data if "target_probability" in data or "edges" in data else {}
