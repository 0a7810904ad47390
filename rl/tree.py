"""Token trees: many sequences of one group with everything they share laid down once.

The rollouts of a question begin alike (system prompt, question), turns of one rollout extend each
other, and gold-answer probes branch off at a turn's end. As a tree each such token is computed once.
A token sees its ancestors and nothing else, and its position is its depth: so every path through the
tree is computed exactly as the sequence alone would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTree:
    """Segments in depth-first order; each is a run of tokens without a branch.

    Attributes:
        ids: int64[n], the tokens, segment after segment.
        positions: int64[n], depth of each token.
        starts: int64[m + 1], where each segment begins; the last entry is n.
        parents: int64[m], segment above each, -1 for a root; always less than the own index.
        rows: for each sequence that was put in, int64[its length]: where its tokens lie.
    """

    ids: Ids
    positions: Ids
    starts: Ids
    parents: Ids
    rows: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sequence_tokens(self) -> int:
        """Tokens of all sequences together, what the tree saves measured against."""
        return sum(len(rows) for rows in self.rows)

    def path(self, segment: int) -> Ids:
        """int64[depth]: rows of a segment's ancestors, root first, and then its own."""
        parts: list[Ids] = []
        at = segment
        while at >= 0:
            parts.append(np.arange(self.starts[at], self.starts[at + 1]))
            at = int(self.parents[at])
        return np.concatenate(parts[::-1])

    def behind(self, count: int) -> TokenTree:
        """The tree without its first tokens, fewer than its first segment has.

        Positions stay as they are; `rows` are left out.
        """
        starts = np.maximum(self.starts - count, 0)
        return TokenTree(self.ids[count:], self.positions[count:], starts, self.parents, ())

    def predictors(self) -> Ids:
        """int64[n]: the row whose output predicts each token; -1 for the first token of a root."""
        before = np.arange(len(self.ids)) - 1
        for segment, parent in enumerate(self.parents):
            start = int(self.starts[segment])
            before[start] = self.starts[parent + 1] - 1 if parent >= 0 else -1
        return before


@dataclass
class _Node:
    """A run of tokens with what comes behind it, by first token."""

    ids: Ids
    children: dict[int, _Node] = field(default_factory=dict)
    start: int = 0

    def split(self, at: int) -> None:
        """Make the tokens from `at` on a child of the ones before."""
        rest = _Node(self.ids[at:], self.children)
        self.ids = self.ids[:at]
        self.children = {int(rest.ids[0]): rest}


def build_tree(sequences: Sequence[Ids]) -> TokenTree:
    """The tree of token sequences; equal beginnings are shared, whoever they belong to.

    Args:
        sequences: int64[length] each; an empty one gets no row.
    """
    root = _Node(np.zeros(0, dtype=np.int64))
    for sequence in sequences:
        _insert(root, sequence)
    order = list(_depth_first(root))
    starts = np.zeros(len(order) + 1, dtype=np.int64)
    parents = np.full(len(order), -1, dtype=np.int64)
    index = {id(node): number for number, (node, _, _) in enumerate(order)}
    depths = []
    for number, (node, parent, depth) in enumerate(order):
        node.start = int(starts[number])
        starts[number + 1] = starts[number] + len(node.ids)
        parents[number] = index.get(id(parent), -1)
        depths.append(np.arange(depth, depth + len(node.ids)))
    none = np.zeros(0, dtype=np.int64)
    return TokenTree(
        ids=np.concatenate([node.ids for node, _, _ in order] or [none]),
        positions=np.concatenate(depths or [none]),
        starts=starts,
        parents=parents,
        rows=tuple(_find(root, sequence) for sequence in sequences),
    )


def shared_beginning(trees: Sequence[TokenTree]) -> int:
    """How many tokens all trees begin with alike, fewer than the first segment of any has.

    0 where one has several roots or no token.
    """
    if not trees or any((tree.parents < 0).sum() != 1 for tree in trees):
        return 0
    first = trees[0].ids[: min(int(tree.starts[1]) for tree in trees) - 1]
    return min(_shared(first, tree.ids[: len(first)]) for tree in trees)


def _insert(root: _Node, sequence: Ids) -> None:
    node, at = root, 0
    while at < len(sequence):
        child = node.children.get(int(sequence[at]))
        if child is None:
            node.children[int(sequence[at])] = _Node(np.asarray(sequence[at:], dtype=np.int64))
            return
        shared = _shared(child.ids, sequence[at:])
        if shared < len(child.ids) and at + shared < len(sequence):
            child.split(shared)
        node, at = child, at + shared


def _shared(a: Ids, b: Ids) -> int:
    """How many tokens two runs begin with alike."""
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


def _depth_first(root: _Node) -> Iterator[tuple[_Node, _Node, int]]:
    """Node, its parent and its depth, parents before children; no recursion: trees may be deep."""
    stack = [(child, root, 0) for child in reversed(root.children.values())]
    while stack:
        node, parent, depth = stack.pop()
        yield node, parent, depth
        below = depth + len(node.ids)
        stack += [(child, node, below) for child in reversed(node.children.values())]


def _find(root: _Node, sequence: Ids) -> Ids:
    """Rows of a sequence that was put in; it may end within a segment."""
    parts: list[Ids] = [np.zeros(0, dtype=np.int64)]
    node, at = root, 0
    while at < len(sequence):
        node = node.children[int(sequence[at])]
        size = min(len(node.ids), len(sequence) - at)
        parts.append(np.arange(node.start, node.start + size))
        at += size
    return np.concatenate(parts)
