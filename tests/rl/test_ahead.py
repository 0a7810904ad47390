"""Collecting one step ahead of the update: how stale the episodes are, and what becomes of them."""

import json
import signal
import subprocess

import numpy as np
import pytest

from agent.store import TrajectoryStore
from rl.batches import calls_tree
from rl.fit import TrainingError
from rl.scoring import load_scorer
from rl.step_metrics import staleness
from tests import forked
from tests.rl.rollouts import RIGHT, play
from tests.rl.training_run import recipe, run

RATE = {"optimizer": {"lr": 1e-3, "warmup": 0.0, "final": 1.0}}
LONG = {"engine": "transformers", "tasks": 2, "size": 4, "concurrency": 2, "ahead": True}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stored(out):
    """Episodes of each step."""
    with TrajectoryStore.open(out / "trajectories.sqlite") as store:
        found = list(store.query())
    steps = sorted({t.group.partition("/")[0] for t in found})
    return {step: [t for t in found if t.group.startswith(step)] for step in steps}


def test_it_trains_on_corrected_episodes_of_the_weights_before(tmp_path, micro):
    out = tmp_path / "run"
    small = {"tasks": 2, "size": 4, "concurrency": 8, "ahead": True}
    changes = {"steps": 3, "rollouts": small, "update": RATE}
    assert run(out, tmp_path / "home", **changes).finished
    told = rows(out)
    assert [row["staleness"] for row in told] == [0.0, 1.0, 1.0]
    assert all(row["skipped"] == 0 and row["grad_norm"] > 0 for row in told)
    # fresh episodes have the learner's own log-probabilities, stale ones those of other weights
    assert told[0]["gap_mean"] < 1e-4
    assert abs(told[0]["weight_mean"] - 1) < 1e-4
    for row in told[1:]:
        assert row["gap_mean"] > 20 * told[0]["gap_mean"]
        assert 0 < row["weight_min"] < 0.999
    episodes = stored(out)
    assert {t.policy for t in episodes["step-00001"]} == {t.policy for t in episodes["step-00002"]}
    assert not {t.policy for t in episodes["step-00003"]} & {
        t.policy for t in episodes["step-00001"]
    }
    # what is recorded of the second step are the log-probabilities of the weights that sampled it
    scorer = load_scorer(micro, "micro")
    for t in episodes["step-00002"]:
        tree, replies, where = calls_tree([(0, t)])
        unique, place = np.unique(where, return_inverse=True)
        expected = scorer.logprobs(tree, unique)[place]
        recorded = np.concatenate([t.logprobs[reply.tokens] for reply in replies])
        assert np.abs(expected - recorded).max() < 1e-3


def test_staleness_is_counted_from_the_versions_that_the_episodes_name():
    old, new = play(RIGHT, name="micro@aaa"), play(RIGHT, name="other@bbb")
    made = {"aaa": 3, "bbb": 5}
    assert staleness([[old, old], [new]], made, 5) == 1.0
    assert staleness([[new]], made, 5) == 0.0
    assert staleness([[old, new]], {"aaa": 3}, 5) == 2.0
    assert np.isnan(staleness([[old]], {}, 5))


def test_ctrl_c_cancels_the_next_collection_and_the_same_command_goes_on(tmp_path):
    """Two episodes at once take much longer than the update: it is in the middle when the run ends."""
    out = tmp_path / "run"
    command = ["-m", "tests.rl.training_run", str(out), "steps=2"]
    command += [f"rollouts={json.dumps(LONG)}"]
    with forked.Forked(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        assert any(line == "stage collect 8 8\n" for line in lines)
        assert next(lines).startswith("stage collect 1 8")  # of step 2
        process.send_signal(signal.SIGINT)
        rest = list(lines)
    assert process.returncode == 0
    assert "step 1\n" in rest
    assert "stage collect 8 8\n" not in rest
    report = json.loads((out / "report.json").read_text())
    assert (report["steps"], report["interrupted"]) == (1, True)
    assert {step: len(found) for step, found in stored(out).items()} == {"step-00001": 8}
    again = forked.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert [line for line in again.stdout.splitlines() if line.startswith("step")] == ["step 2"]
    assert {step: len(found) for step, found in stored(out).items()} == {
        "step-00001": 8,
        "step-00002": 8,
    }


def test_a_run_that_fails_leaves_nothing_of_the_next_collection(tmp_path, no_numbers):
    out = tmp_path / "run"
    ahead = {"engine": "transformers", "tasks": 2, "ahead": True}
    with pytest.raises(TrainingError, match="1 steps in a row"):
        run(out, tmp_path / "home", rollouts=ahead, update={"bad_steps": 1})
    assert stored(out).keys() == {"step-00001"}


def test_stale_episodes_need_a_correction():
    from kg.errors import UsageError

    with pytest.raises(UsageError, match="correction must be set"):
        recipe(rollouts={"ahead": True}, loss={"correction": None})
