"""Evaluation runs for tests: played by the scripted expert, or written as a run leaves them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.policies.base import Sampling
from agent.settings import Settings, load_settings
from agent.task import Task
from agent.trajectory import Status, StopReason, Trajectory
from eval.benchmarks import DataFolder, load
from eval.folder import (
    RunHeader,
    SetHeader,
    claim,
    group_of,
    open_store,
)
from eval.run import EvalRequest, run
from eval.score import score_run
from kg.errors import PolicyUnavailableError
from kg.library.load import load_library
from kg.library.passages import passages
from rl.guidance.expert import ExpertPolicy, Passage

ROOT = Path(__file__).resolve().parents[2]


class Failing(ExpertPolicy):
    """Plays on until it has replied `after` times, then nobody answers."""

    after = 10**9
    calls = 0

    async def generate(self, requests):
        self.calls += 1
        if self.calls > self.after:
            raise PolicyUnavailableError("the server is gone")
        return await super().generate(requests)


def expert(template, kind=Failing):
    tasks = load("library", DataFolder("", Path()), "test").tasks
    corpus = {row["id"]: Passage(row["title"], row["text"]) for row in passages(load_library())}
    return kind(template, tasks, corpus, misleading=0.2)


class Own(Settings):
    """The user's models and indexes; the rest in a folder of the test."""

    @property
    def benchmarks_dir(self):
        return self.home / "benchmarks"

    @property
    def models_dir(self):
        return load_settings().models_dir

    @property
    def indexes_dir(self):
        return load_settings().indexes_dir


def ask(settings, out, **options):
    run(EvalRequest(benchmarks=("library",), **{"limit": 24, **options}), settings, out)
    return score_run(out)


def own_questions(path, count=6):
    """A file of library questions; gives its path."""
    tasks = load("library", DataFolder("", Path()), "test").tasks
    rows = [
        {"id": t.id, "question": t.question, "answers": list(t.answers)} for t in tasks if t.answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return str(path)


def outcome(scores):
    return sorted(
        (s.benchmark, s.task, s.seed, s.answer, s.right, s.usage.turns) for s in scores.samples
    )


_SETUP = {"budgets": {}, "sampling": {"temperature": 0.0, "max_tokens": 9}, "format": "tags"}


def run_folder(
    out,
    tasks,
    said=lambda task: "x",
    scorer="squad2",
    of=lambda task: "set",
    tools=(),
    turns=lambda task: (),
    **header,
):
    """A finished run, written as a run leaves it; `said` gives the answer to a task, `of` its set."""
    counts = Counter(map(of, tasks))
    sets = [
        SetHeader(
            name=name, scorer=scorer, tasks=count, skipped=[], tools=dict.fromkeys(tools, "1")
        )
        for name, count in counts.items()
    ]
    fields = {"given": "", "seed": 0, "samples": 1, "setup": _SETUP, "packages": {}}
    made = RunHeader(
        **{
            **fields,
            "created": "2026-01-01T00:00:00+00:00",
            "policy": "p@1",
            "sets": sets,
            **header,
        }
    )
    claim(out, made, [(of(task), task) for task in tasks])
    with open_store(out) as store:
        for task in tasks:
            status, reason = Status.ANSWERED, StopReason.ANSWER
            if not said(task):
                status, reason = Status.ABSTAINED, StopReason.ABSTAIN
            store.add(
                Trajectory(
                    replace(task, answers=()), "p@1", 0, Sampling(), status,
                    reason, turns(task), np.zeros(0, np.int32), np.zeros(0, np.float32),
                    answer=said(task), group=group_of(of(task), task),
                )
            )  # fmt: skip
    return out


def questions(count, **fields):
    return [Task(f"q{n}", f"Who is {n}?", **{"answers": ("x",), **fields}) for n in range(count)]
