"""`agent trace credit` and `agent trace html --credit`: receipts of stored episodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from agent.console.html import write_html
from agent.store import Filter, TrajectoryStore
from agent.trajectory import Trajectory
from kg.errors import PolicyUnavailableError, UsageError
from rl.assess import Assessed, assess, unfit
from rl.assessment_recipe import Assessment
from rl.boundary import told_labels
from rl.receipt import Receipt, make_receipt
from rl.receipt_table import render_receipt
from rl.rewards import RewardContext
from rl.train_recipe import load_assessment

if TYPE_CHECKING:
    from agent.policies.vllm import VllmPolicy
    from rl.scoring import Scorer

Notify = Callable[[str], None]
#: What computes probes: transformers, one token tree a pass, or vLLM, one request a branch of it.
Engine = Literal["model", "vllm"]


class _Loaded(NamedTuple):
    """A scorer and the `name@version` of its weights."""

    scorer: Scorer
    label: str


@dataclass
class Accountant:
    """Makes receipts of the episodes of a store, each within its group.

    Args:
        store: where the group's rollouts are.
        recipe: name or file of the assessment.
        models: folder of pulled models.
        policy: model that computes probes; the one that sampled the episode when empty.
        notify: told in words when long work begins and what is skipped.
        engine: what computes probes.
    """

    store: TrajectoryStore
    recipe: str
    models: Path
    policy: str = ""
    notify: Notify = lambda line: None
    engine: Engine = "model"
    _loaded: dict[str, _Loaded] = field(default_factory=dict)
    _assessed: dict[tuple[str, str, str], tuple[Assessed, list[str]]] = field(default_factory=dict)
    _running: list[VllmPolicy] = field(default_factory=list)

    def close(self) -> None:
        """End what was started to compute probes."""
        while self._running:
            asyncio.run(self._running.pop().aclose())

    @cached_property
    def spec(self) -> Assessment:
        """The recipe, read."""
        return load_assessment(self.recipe)

    def receipt(self, trajectory: Trajectory) -> Receipt:
        """The receipt of an episode.

        Raises:
            UsageError: no such recipe, it needs what a stored episode does not have, or this one
                cannot be assessed.
            PolicyUnavailableError: the recipe needs probes and the model cannot be had.
        """
        scorer, label = None, ""
        if self.spec.needs_scorer:
            _require_probeable(trajectory)
            if reason := unfit(trajectory, self.spec.credit):
                raise UsageError(f"the episode {trajectory.id} cannot be assessed: {reason}")
            scorer, label = self._scorer(trajectory)
        assessed, notes = self._assess(trajectory, scorer, label)
        if label not in ("", trajectory.policy):
            notes = [*notes, f"probed with {label}, not with {trajectory.policy} that sampled it"]
        return make_receipt(
            assessed,
            trajectory.id,
            recipe=Path(self.recipe).stem,
            scored_by=label,
            notes=tuple(notes),
        )

    def _assess(
        self, trajectory: Trajectory, scorer: Scorer | None, label: str
    ) -> tuple[Assessed, list[str]]:
        """The episode's group, assessed once for all its episodes, and notes."""
        key = (trajectory.group or trajectory.id, trajectory.task.id, label)
        if key not in self._assessed:
            group, notes = self._group(trajectory)
            context = RewardContext(known=told_labels([t.task for t in group]))
            found = assess([group], self.spec, context, scorer)
            self._assessed[key] = (found, notes)
        return self._assessed[key]

    def _group(self, trajectory: Trajectory) -> tuple[list[Trajectory], list[str]]:
        """All stored rollouts that are compared with this one, itself included, and notes."""
        if not trajectory.group:
            return [trajectory], ["the episode belongs to no group: it is compared with no other"]
        problems: list[str] = []
        chosen = Filter(group=trajectory.group, newest_first=False)
        found = [t for t in self.store.query(chosen, problems) if t.group == trajectory.group]
        group = [t for t in found if t.task.id == trajectory.task.id]
        notes = [f"skipped: {problem}" for problem in problems]
        if len(group) < len(found):
            others = len(found) - len(group)
            notes.append(f"episodes of other tasks in this group are not compared: {others}")
        if len(group) == 1:
            notes.append("a group of one: there is no other rollout to compare with")
        return group, notes

    def _scorer(self, trajectory: Trajectory) -> _Loaded:
        given = self.policy or trajectory.policy.rpartition("@")[0] or trajectory.policy
        engine, _, rest = given.partition(":")
        name = rest if engine in ("vllm", "transformers") and rest else given
        if name not in self._loaded:
            self._loaded[name] = self._load(name, trajectory)
        return self._loaded[name]

    def _load(self, name: str, trajectory: Trajectory) -> _Loaded:
        from agent.policies.catalog import resolve

        hint = "--policy NAME of a local model, or a recipe without probes: --recipe grpo"
        gone = PolicyUnavailableError(
            f"the policy '{name}' that sampled {trajectory.id} is not a local model", hint
        )
        if "://" in name:
            raise UsageError("a server's policy computes no probes", hint)
        if not self.policy and "/" in name and not Path(name).is_dir():
            raise gone  # an episode may come from anywhere: it has nothing fetched from the Hub
        try:
            folder = resolve(name, self.models, self.notify)
        except UsageError as error:
            if self.policy:
                raise
            raise gone from error
        self.notify(f"scoring with {name}")
        scorer = self._open(folder, name)
        loaded = _Loaded(scorer, scorer.policy)
        if self.policy:
            scorer.policy = ""  # asked for by name: only the tokens must fit
        return loaded

    def _open(self, folder: Path, name: str) -> Scorer:
        """The scorer of a model folder; one on vLLM runs until `close`.

        Raises:
            PolicyUnavailableError: the folder holds no model, or the engine does not start.
            MissingExtraError: vLLM is not installed.
        """
        if self.engine == "vllm":
            from agent.policies.vllm import VllmPolicy
            from rl.scoring import VllmScorer

            self._running.append(VllmPolicy(folder, name=name))
            return VllmScorer(self._running[-1])
        from agent.policies.plain_model import quiet
        from rl.scoring import load_scorer

        with quiet():
            return load_scorer(folder, name)


def credit_report(accountant: Accountant, id: str, as_json: bool) -> str:
    """The receipt of the episode of an id (or its beginning), as a table or as JSON.

    Raises:
        UsageError: no such episode, or see `Accountant.receipt`.
        PolicyUnavailableError: see there.
    """
    receipt = accountant.receipt(accountant.store.get(id))
    return json.dumps(plain(receipt)) if as_json else render_receipt(receipt)


def write_page(accountant: Accountant, ids: Sequence[str], out: Path) -> Path:
    """Write the trace viewer's page with receipts; without ids, of the newest episode.

    An episode that cannot be assessed is shown without a receipt, and told.

    Raises:
        UsageError: no such episode or recipe, or the file cannot be written.
        PolicyUnavailableError: see `Accountant.receipt`.
    """

    def receipts(chosen: Sequence[Trajectory]) -> dict[str, dict[str, Any]]:
        assert accountant.spec  # an unknown recipe is no matter of one episode
        found = {}
        for trajectory in chosen:
            try:
                found[trajectory.id] = plain(accountant.receipt(trajectory))
            except UsageError as error:
                accountant.notify(f"no receipt: {error.message}")
        return found

    return write_html(accountant.store, ids, out, accountant.models, receipts)


def plain(receipt: Receipt) -> dict[str, Any]:
    """JSON values of a receipt, with the trajectory's sum."""
    return {**asdict(receipt), "contribution": receipt.contribution}


def _require_probeable(trajectory: Trajectory) -> None:
    """Refuse what no model need be loaded for."""
    lacks, hint = "", ""
    if not trajectory.has_tokens:
        lacks = f"the policy {trajectory.policy} gave no token ids"
        hint = "collect episodes with a local policy"
    elif not trajectory.task.answers:
        lacks = "its task has no gold answer to probe for"
        hint = "agent eval FILE asks questions whose answers are known"
    if lacks:
        raise UsageError(f"the episode {trajectory.id} cannot be assessed: {lacks}", hint)
