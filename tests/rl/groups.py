"""Groups of trajectories of random tokens, in every shape that a tree must get right."""

import random

import numpy as np

from agent.policies.base import Sampling
from agent.task import Task
from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn, join
from tools.base import Observation


def random_group(seed, size=4, vocabulary=200, turns=(1, 4), lengths=(1, 9), policy="p@1"):
    """Rollouts of one question: a common prompt, some common turns, some omitted observations, some last
    answers that the runtime opened."""
    chance = random.Random(seed)

    def some():
        return [chance.randrange(vocabulary) for _ in range(chance.randint(*lengths))]

    prompt = some() + some()
    first = (some(), some())  # a turn that several rollouts share
    return [
        _rollout(chance, some, prompt, first, f"{seed}-{n}", chance.randint(*turns), policy)
        for n in range(size)
    ]


def _rollout(chance, some, prompt, first, id, turns, policy):
    ids, context, done = list(prompt), (Span(0, len(prompt)),), []
    for number in range(turns):
        reply, seen = first if number == 0 and chance.random() < 0.6 else (some(), some())
        last = number == turns - 1
        forced = last and number > 0 and chance.random() < 0.3
        opened = some() if forced else []
        context = join((*context, Span(len(ids), len(ids) + len(opened))))
        ids += opened
        start = len(ids)
        ids += reply
        span = Span(start, len(ids))
        shown = [] if last else seen
        ids += shown
        observed = Span(span.stop, len(ids))
        done.append(
            Turn(
                context, span, observed, "", Action(ActionKind.TOOL, "search", {"query": str(number)}),
                None if last else Observation("search", "found"),
                sampled=chance.random() < 0.9,
                forced=forced,
            )
        )  # fmt: skip
        context = join((*context, span, observed))
        if not last and chance.random() < 0.3:  # the observation is omitted afterwards
            stub = len(ids)
            ids += some()
            context = join((*done[-1].context, span, Span(stub, len(ids))))
    known = np.full(len(ids), np.nan, dtype=np.float32)
    for turn in done:
        if turn.sampled:
            known[turn.reply.start : turn.reply.stop] = -1.0
    return Trajectory(
        Task("t", "Q?", ("gold",)), policy, 0, Sampling(temperature=1.0), Status.ANSWERED,
        StopReason.ANSWER, tuple(done), np.asarray(ids, dtype=np.int32), known, id=id,
    )  # fmt: skip
