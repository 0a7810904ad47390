"""turnwise inside Inspect: the agent, an answer scorer, and every question set as a task.

    inspect eval turnwise/question_set -T benchmark=library --model none

The agent brings its own policy, so that Inspect's `--model` is not asked anything. Inspect puts the
import package before the names of what lies in site-packages: there the task is
`eval/turnwise/question_set`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from inspect_ai import Task as InspectTask
from inspect_ai import task
from inspect_ai.agent import Agent, AgentState, agent, as_solver
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.util import store

from agent.episode import Episode
from agent.graph import Graph, Setup, build_graph
from agent.policies.registry import policy_of
from agent.rollout import run_episode
from agent.session import make_setup
from agent.settings import Settings, load_settings
from agent.task import Task
from agent.toolbox import open_tools
from agent.trajectory import Status, Trajectory
from eval.inspect.messages import messages_of
from eval.metrics import scorer as scorer_named
from eval.run import playable, spread
from eval.sample import NO_GOLD, answer_scores
from kg.errors import TurnwiseError

log = logging.getLogger(__name__)

STORED = "turnwise:trajectory"


@dataclass(frozen=True)
class _Open:
    """What episodes of one event loop share."""

    setup: Setup
    graph: Graph


# A policy belongs to the loop that it was opened in; Inspect runs each evaluation in one of its own.
_opened: WeakKeyDictionary[Any, dict[str, asyncio.Task[_Open]]] = WeakKeyDictionary()


@agent(name="turnwise/agent")
def turnwise(
    policy: str | None = None,
    corpus: list[str] | None = None,
    tools: list[str] | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> Agent:
    """Answers the last message of the user; the token-exact trajectory goes into the sample's store.

    Args:
        policy, corpus, tools: as in `agent ask`; None leaves what the settings say.
        seed: of the first epoch; each later one has the next.
        temperature: of the policy's sampling.
    """
    flags: dict[str, Any] = {
        "policy": policy,
        "corpus": tuple(map(Path, corpus)) if corpus else None,
        "tools": tuple(tools) if tools is not None else None,
        "seed": seed,
        "sampling": None if temperature is None else {"temperature": temperature},
    }
    settings = load_settings(**flags)

    async def execute(state: AgentState) -> AgentState:
        opened = await _open(settings)
        episode = Episode(Task.ask(_question(state)), seed=settings.seed + _epoch() - 1)
        done = await run_episode(episode, opened.setup, opened.graph)
        store().set(STORED, done.to_dict())
        if done.status is Status.FAILED:
            raise RuntimeError(done.error)
        state.messages.extend(messages_of(done)[1:])
        state.output = ModelOutput.from_content(done.policy, done.answer)
        return state

    return execute


@scorer(metrics={key: [mean(), stderr()] for key in ("right", "em", "f1")}, name="turnwise/answers")
def answers(scorer_name: str = "squad2") -> Scorer:
    """A question set's official scorer; for an unanswerable question, whether the agent declined.

    turnwise tells by its trajectory whether it declined or ended without an answer; of another agent
    it is only known that nothing was said.

    Args:
        scorer_name: one of `eval.metrics.SCORERS`.

    Raises:
        UsageError: there is no such scorer.
    """

    chosen = scorer_named(scorer_name).name

    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion.strip()
        gold, facts = [text for text in target if text], state.metadata
        if not gold:
            found = state.store.get(STORED)
            declined = float(Trajectory.from_dict(found).abstained if found else not said)
            return Score(value={"right": declined, "em": declined, "f1": declined}, answer=said)
        right, scores = answer_scores(chosen, said, gold, facts)
        return Score(value={"right": right, "em": scores.em, "f1": scores.f1}, answer=said)

    return score


@task(name="turnwise/question_set")
def question_set(
    benchmark: str, data: str = "", questions: int = 0, policy: str | None = None
) -> InspectTask:
    """A question set of turnwise, over its own corpus; rows that gave no question are in its metadata.

    Args:
        benchmark, data: as for `agent eval`.
        questions: at most so many, spread evenly; 0 for all.
        policy: as in `agent ask`.

    Raises:
        UsageError: as `eval.run.playable`.
    """
    found = playable(benchmark, data, load_settings())
    scored = [one for one in found.tasks if _scorable(one)]
    skipped = [*found.skipped, *(f"{t.id}: {NO_GOLD}" for t in found.tasks if not _scorable(t))]
    if skipped:
        log.warning("%s: %d rows are left out, the first: %s", found.name, len(skipped), skipped[0])
    samples = [
        InspectSample(
            id=one.id,
            input=one.question,
            target=list(one.answers) or "",
            metadata={**one.meta, "kind": one.kind, "evidence": list(one.evidence)},
        )
        for one in spread(scored, questions)
    ]
    corpus = [str(path) for path in found.corpus]
    return InspectTask(
        dataset=MemoryDataset(samples, name=found.name),
        solver=as_solver(turnwise(policy=policy, corpus=corpus)),
        scorer=answers(found.scorer),
        metadata={"skipped": skipped},
    )


def _scorable(task: Task) -> bool:
    return bool(task.answers) or task.answerable is False


async def _open(settings: Settings) -> _Open:
    """Policy and tools, opened by the first sample that needs them."""
    mine = _opened.setdefault(asyncio.get_running_loop(), {})
    key = settings.model_dump_json()
    if key not in mine:
        mine[key] = asyncio.ensure_future(_make(settings))
    return await asyncio.shield(mine[key])


async def _make(settings: Settings) -> _Open:
    tools = await asyncio.to_thread(open_tools, settings)
    policy = await asyncio.to_thread(policy_of, settings)
    return _Open(make_setup(settings, policy, tools), build_graph(tools))


def _epoch() -> int:
    """Which repetition of the sample this is, from 1; an agent's own state does not tell."""
    from inspect_ai.solver._task_state import sample_state

    found = sample_state()
    return found.epoch if found is not None else 1


def _question(state: AgentState) -> str:
    for message in reversed(state.messages):
        if message.role == "user":
            return message.text
    raise TurnwiseError("the sample holds no message of a user")
