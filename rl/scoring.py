"""Log-probabilities of a group's tokens, and of its gold answers at every turn, in one pass.

All that a group's policy calls saw and wrote is laid into one token tree, with a probe of each gold
answer hanging off the end of each context. A `Scorer` computes the tree; nothing here carries a
gradient.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from agent.policies.base import Request, Sampling
from agent.policies.chat import ChatTemplate
from agent.trajectory import Trajectory, TrajectoryError, Turn
from kg.errors import PolicyUnavailableError, UsageError
from rl.probes import Probe, Wrapper, make_probe, probed_context
from rl.tree import TokenTree, build_tree

if TYPE_CHECKING:
    import torch

    from agent.policies.vllm import VllmPolicy
    from rl.tree_attention import Way

Ids = npt.NDArray[np.int64]
Logprobs = npt.NDArray[np.float32]

#: Which gold answers are probed at every turn: all, the one likeliest on the bare prompt, or the first.
Alias = Literal["all", "likeliest", "first"]


class Scorer(ABC):
    """Log-probabilities under one set of weights.

    Attributes:
        policy: `name@version` of the weights, as trajectories name them; "" accepts any.
        template: its tokenizer.
        context_length: the most tokens of a sequence that it reads; 0 when unknown.
    """

    policy: str
    template: ChatTemplate
    context_length: int = 0

    @abstractmethod
    def logprobs(self, tree: TokenTree, rows: Ids) -> Logprobs:
        """float32[m]: log p(token at a row | its ancestors) in nats, for each of `rows`.

        Untruncated, at temperature 1. `rows` holds no first token of a root.
        """

    def many(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Logprobs]:
        """`logprobs` of several trees, which an engine may compute at once."""
        return [self.logprobs(tree, rows) for tree, rows in trees]


class ModelScorer(Scorer):
    """A transformers model in this process.

    Args:
        model: a causal language model with the attention `tree`; see `load_scorer`.
        template: its tokenizer.
        policy: `name@version`.
        way: how attention is computed; see `rl.tree_attention`.
    """

    def __init__(
        self, model: torch.nn.Module, template: ChatTemplate, policy: str, way: Way = "auto"
    ) -> None:
        from rl.engine import TargetLogprobs

        self.policy = policy
        self.template = template
        self.way: Way = way
        self.context_length = positions(model)
        self._targets = TargetLogprobs(model.eval())

    def logprobs(self, tree: TokenTree, rows: Ids) -> Logprobs:
        """See `Scorer.logprobs`; one forward pass."""
        [found] = self._computed([(tree, rows)])
        return found

    def many(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Logprobs]:
        """See `Scorer.many`; what all begin with is computed once."""
        return self._computed(trees)

    def _computed(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Logprobs]:
        import torch

        from rl.tree_pass import beginning_of, tree_logprobs

        device = next(self._targets.parameters()).device
        asked = [one for one in trees if len(one[1])]
        with torch.inference_mode():
            above = beginning_of(self._targets, asked, device, self.way)
            return [
                tree_logprobs(self._targets, tree, rows, device, self.way, above)
                if len(rows)
                else np.zeros(0, dtype=np.float32)
                for tree, rows in trees
            ]


def positions(model: Any) -> int:
    """Positions that a transformers model was trained for; 0 when its configuration does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)


def load_scorer(
    folder: Path, name: str, dtype: str = "float32", device: str = "cpu", way: Way = "auto"
) -> ModelScorer:
    """The scorer of a model folder.

    Args:
        folder: config, weights and tokenizer.
        name: as the policy was named.
        dtype: of weights and computation.
        device: where.
        way: how attention is computed.

    Raises:
        PolicyUnavailableError: the folder does not hold a model.
        UsageError: its attention differs from what a tree computes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from agent.policies.model_folder import weights_version
    from rl.attention import require_plain
    from rl.tree_attention import NAME, register

    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=NAME,
            local_files_only=True,
        )
    except Exception as error:  # safetensors, json and transformers each raise their own
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise PolicyUnavailableError(
            f"no model in {folder}: {cause}", "agent models list"
        ) from error
    require_plain(model.config, model.config.max_position_embeddings)
    version = weights_version(folder)
    return ModelScorer(model.to(device), ChatTemplate.load(folder), f"{name}@{version}", way)


class VllmScorer(Scorer):
    """vLLM's log-probabilities of prompt tokens: one request a leaf of the tree, batched by the engine.

    Args:
        policy: a running engine; it is not closed here.
    """

    def __init__(self, policy: VllmPolicy) -> None:
        assert policy.template is not None
        self.policy = f"{policy.name}@{policy.version}"
        self.template = policy.template
        self.context_length = policy.context_length - 1  # it must sample one token behind each
        self._engine = policy

    def logprobs(self, tree: TokenTree, rows: Ids) -> Logprobs:
        """See `Scorer.logprobs`."""
        return self.many([(tree, rows)])[0]

    def many(self, trees: Sequence[tuple[TokenTree, Ids]]) -> list[Logprobs]:
        """See `Scorer.many`; the engine batches the leaves of all trees."""
        paths = [(tree, path) for tree, _ in trees for path in _leaves(tree)]
        one = Sampling(max_tokens=1)
        requests = [
            Request((), tuple(tree.ids[path].tolist()), one, prompt_logprobs=True)
            for tree, path in paths
        ]
        with ThreadPoolExecutor(1) as apart:  # the caller may be within an event loop of its own
            done = apart.submit(asyncio.run, self._engine.generate(requests)).result()
        found = {id(tree): np.full(len(tree), np.nan, dtype=np.float32) for tree, _ in trees}
        for (tree, path), completion in zip(paths, done, strict=True):
            found[id(tree)][path] = completion.prompt_logprobs
        return [found[id(tree)][rows] for tree, rows in trees]


def _leaves(tree: TokenTree) -> list[Ids]:
    """The rows of each path from a root to a leaf."""
    inner = set(tree.parents.tolist())
    return [tree.path(number) for number in range(len(tree.parents)) if number not in inner]


@dataclass(frozen=True)
class GroupScores:
    """What scoring gives of the trajectories of one task.

    Attributes:
        logprobs: by trajectory id, float32[its tokens], NaN where the policy did not sample.
        gold: by trajectory id, float64[answers, turns]: mean log-probability (nats a token) of each
            gold answer behind what each turn's call saw (`rl.probes.probed_context`); column 0 is the
            bare prompt. Rows follow the answers; NaN where one was not probed.
        tokens: of the trees, which may have had their beginning computed once together;
            `sequence_tokens` is what the same would be one by one.
        problems: a line for each trajectory that could not be scored.
    """

    logprobs: dict[str, Logprobs] = field(default_factory=dict)
    gold: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    tokens: int = 0
    sequence_tokens: int = 0
    problems: tuple[str, ...] = ()


@dataclass
class _Layout:
    """The sequences of some trajectories and what is to be read off each.

    Attributes:
        sequences: tokens, each a path of the tree.
        replies: trajectory, positions in its `token_ids`, sequence: its sampled tokens are that
            sequence's last.
        forced: trajectory, answer, turn, sequence, and which of its last tokens are the answer's.
    """

    sequences: list[Ids] = field(default_factory=list)
    replies: list[tuple[Trajectory, Ids, int]] = field(default_factory=list)
    forced: list[tuple[Trajectory, int, int, int, npt.NDArray[np.bool_]]] = field(
        default_factory=list
    )

    def force(self, trajectory: Trajectory, turn: int, probes: Mapping[int, Probe]) -> None:
        """Add the probes of a turn, by number of their answer."""
        context = probed_context(trajectory, turn)
        for answer, probe in probes.items():
            self.forced.append((trajectory, answer, turn, len(self.sequences), probe.answer))
            self.sequences.append(np.concatenate([context, probe.ids]))


def score_group(
    scorer: Scorer,
    group: Sequence[Trajectory],
    answers: Sequence[str] = (),
    wrapper: Wrapper | None = None,
    most: int = 32_768,
    alias: Alias = "all",
) -> GroupScores:
    """Score trajectories of one task.

    Args:
        scorer: computes log-probabilities.
        group: may share turns; one that cannot be scored is told in `problems`, the others go on.
        answers: gold answers to probe for, the same for the whole group; none for no probes. Blank
            ones are passed over.
        wrapper: text around a forced answer.
        most: tokens of one tree; a larger group is computed in several.
        alias: which of the answers are probed at every turn. `likeliest`: all of them behind the bare
            prompts, in a small pass before, and then the one with the highest mean there.

    Raises:
        UsageError: all gold answers are empty.
    """
    job = _planned(scorer, group, answers, wrapper)
    _carry_out(scorer, [job], most, alias)
    return job.scores


def score_groups(
    scorer: Scorer,
    groups: Sequence[Sequence[Trajectory]],
    answers: Sequence[Sequence[str]],
    wrapper: Wrapper | None = None,
    most: int = 32_768,
    alias: Alias = "all",
) -> list[GroupScores]:
    """`score_group` of several, which a scorer may compute at once, or processes share out.

    Args:
        groups: of one task each.
        answers: of each group's task; a group whose answers are all empty is told in its `problems`.
    """
    jobs = []
    for group, own in zip(groups, answers, strict=True):
        try:
            jobs.append(_planned(scorer, group, own, wrapper))
        except UsageError as error:
            problems = tuple(f"trajectory {t.id} cannot be scored: {error.message}" for t in group)
            jobs.append(_Job([], {}, 0, GroupScores(problems=problems)))
    _carry_out(scorer, jobs, most, alias)
    return [job.scores for job in jobs]


@dataclass
class _Job:
    """A group to be scored.

    Attributes:
        fit: trajectories that can be.
        probes: by number of their answer.
        answers: how many there are.
        scores: so far.
    """

    fit: list[Trajectory]
    probes: dict[int, Probe]
    answers: int
    scores: GroupScores


def _planned(
    scorer: Scorer,
    group: Sequence[Trajectory],
    answers: Sequence[str],
    wrapper: Wrapper | None,
) -> _Job:
    said = {n: answer for n, answer in enumerate(answers) if answer.strip()} or dict(
        enumerate(answers)
    )
    probes = {n: make_probe(scorer.template, answer, wrapper) for n, answer in said.items()}
    longest = max((len(probe.ids) for probe in probes.values()), default=0)
    fit, problems = _scorable(scorer, group, longest)
    return _Job(fit, probes, len(answers), GroupScores(problems=tuple(problems)))


def _carry_out(scorer: Scorer, jobs: Sequence[_Job], most: int, alias: Alias) -> None:
    """Score all jobs: first the choice of an answer, where there is one, and then all turns."""
    several = [job for job in jobs if len(job.probes) > 1]
    if alias == "first":
        for job in several:
            job.probes = dict(list(job.probes.items())[:1])
    elif alias == "likeliest":
        _score(scorer, [(job, _bare(job.fit, job.probes)) for job in several])
        for job in several:
            if job.scores.gold:
                means = np.mean([table[:, 0] for table in job.scores.gold.values()], axis=0)
                known = np.where(
                    np.isnan(means), -np.inf, means
                )  # all, where weights are no numbers
                chosen = int(known.argmax()) if np.isfinite(known).any() else min(job.probes)
                job.probes = {chosen: job.probes[chosen]}
    _score(
        scorer,
        [
            (job, _lay_out(part, job.probes))
            for job in jobs
            for part in _parts(job.fit, list(job.probes.values()), most)
        ],
    )


def _score(scorer: Scorer, layouts: Sequence[tuple[_Job, _Layout]]) -> None:
    """Add what the trees of some layouts give to the scores of their jobs."""
    trees = [build_tree(layout.sequences) for _, layout in layouts]
    wanted = [_wanted(tree, layout) for tree, (_, layout) in zip(trees, layouts, strict=True)]
    found = scorer.many(list(zip(trees, wanted, strict=True)))
    for (job, layout), tree, rows, part in zip(layouts, trees, wanted, found, strict=True):
        values = np.full(len(tree), np.nan, dtype=np.float32)
        values[rows] = part
        _read_replies(job.scores, layout, tree, values)
        _read_gold(job.scores, layout, tree, values, job.answers)
        job.scores = replace(
            job.scores,
            tokens=job.scores.tokens + len(tree),
            sequence_tokens=job.scores.sequence_tokens + tree.sequence_tokens,
        )


def _scorable(
    scorer: Scorer, group: Sequence[Trajectory], longest: int
) -> tuple[list[Trajectory], list[str]]:
    fit: list[Trajectory] = []
    problems: list[str] = []
    for trajectory in group:
        try:
            _check(scorer, trajectory, longest)
        except TrajectoryError as error:
            problems.append(error.message)
        else:
            fit.append(trajectory)
    return fit, problems


def _check(scorer: Scorer, trajectory: Trajectory, longest: int) -> None:
    """Refuse what this scorer cannot score.

    Raises:
        TrajectoryError: no token ids, ids of another tokenizer, or a turn that is too long for the
            model once the longest probe, of so many tokens, hangs off it.
    """
    if not trajectory.has_tokens:
        raise TrajectoryError(
            f"trajectory {trajectory.id} has no token ids (policy {trajectory.policy})",
            "score trajectories of a token-exact policy",
        )
    size = len(scorer.template.tokenizer)
    if (top := int(trajectory.token_ids.max())) >= size or int(trajectory.token_ids.min()) < 0:
        raise TrajectoryError(
            f"trajectory {trajectory.id} holds the token {top}; this model has {size}: it is of "
            f"another model ({trajectory.policy})"
        )
    name = trajectory.policy.partition("@")[0]
    if scorer.policy and name != scorer.policy.partition("@")[0]:
        raise TrajectoryError(
            f"trajectory {trajectory.id} is of the policy {trajectory.policy}, not {scorer.policy}"
        )
    size = max((_size(trajectory, turn, longest) for turn in trajectory.turns), default=0)
    if 0 < scorer.context_length < size:
        raise TrajectoryError(
            f"trajectory {trajectory.id} is too long to score: {size} tokens with the gold answer "
            f"behind them; the model reads {scorer.context_length}"
        )


def _size(trajectory: Trajectory, turn: Turn, longest: int) -> int:
    """Tokens of the longest sequence that a turn is scored in."""
    reply = turn.reply.stop - turn.reply.start if turn.sampled else 0
    return len(trajectory.prompt_of(turn)) + max(reply, longest)


def _parts(
    group: Sequence[Trajectory], probes: Sequence[Probe], most: int
) -> Iterable[list[Trajectory]]:
    """Trajectories whose trees hold at most `most` tokens, by an upper bound; a longer one is alone."""
    part: list[Trajectory] = []
    used = 0
    extra = sum(len(probe.ids) for probe in probes)
    for trajectory in group:
        size = len(trajectory.token_ids) + extra * len(trajectory.turns)
        if part and used + size > most:
            yield part
            part, used = [], 0
        part.append(trajectory)
        used += size
    if part:
        yield part


def _bare(group: Sequence[Trajectory], probes: Mapping[int, Probe]) -> _Layout:
    """The probes behind what the first call of each trajectory saw: mostly the same for all."""
    layout = _Layout()
    for trajectory in group:
        if trajectory.turns:
            layout.force(trajectory, 0, probes)
    return layout


def _lay_out(group: Sequence[Trajectory], probes: Mapping[int, Probe]) -> _Layout:
    layout = _Layout()
    for trajectory in group:
        for number, turn in enumerate(trajectory.turns):
            context = trajectory.prompt_of(turn).astype(np.int64)
            reply = np.arange(turn.reply.start, turn.reply.stop)
            if turn.sampled and len(reply):
                layout.replies.append((trajectory, reply, len(layout.sequences)))
                layout.sequences.append(np.concatenate([context, trajectory.token_ids[reply]]))
            layout.force(trajectory, number, probes)
    return layout


def _wanted(tree: TokenTree, layout: _Layout) -> Ids:
    """int64[m], ascending: rows whose log-probabilities are read."""
    wanted = np.zeros(len(tree), dtype=np.bool_)
    for _, reply, place in layout.replies:
        wanted[tree.rows[place][-len(reply) :]] = True
    for _, _, _, place, mask in layout.forced:
        wanted[tree.rows[place][-len(mask) :][mask]] = True
    return np.flatnonzero(wanted)


def _read_replies(scores: GroupScores, layout: _Layout, tree: TokenTree, values: Logprobs) -> None:
    for trajectory, reply, place in layout.replies:
        row = scores.logprobs.setdefault(
            trajectory.id, np.full(len(trajectory.token_ids), np.nan, dtype=np.float32)
        )
        row[reply] = values[tree.rows[place][-len(reply) :]]


def _read_gold(
    scores: GroupScores, layout: _Layout, tree: TokenTree, values: Logprobs, answers: int
) -> None:
    for trajectory, answer, turn, place, mask in layout.forced:
        table = scores.gold.setdefault(
            trajectory.id, np.full((answers, len(trajectory.turns)), np.nan)
        )
        table[answer, turn] = values[tree.rows[place][-len(mask) :][mask]].mean(dtype=np.float64)
