"""A whole run in two processes, as a launcher starts it: one samples, both learn: policy and critic."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

from agent.policies.merge import merged_model
from agent.store import TrajectoryStore
from rl.run_history import read_history
from tests.rl.training_run import run

CHANGES = {
    "steps": 2,
    "rollouts": {"tasks": 3, "size": 3, "concurrency": 9},
    "rewards": {
        "searches": {"reward": "tool_cost", "options": {"price": 0.2, "most": 1.0}},
        "gain": {"reward": "information_gain", "weight": 0.1},
    },
    "credit": {"estimator": "token_gae"},
    "update": {
        "zero": 3,
        "lora": {"rank": 4},
        "optimizer": {"lr": 1e-3, "warmup": 0.0, "final": 1.0},
    },
    "critic": {"optimizer": {"lr": 1e-3, "warmup": 0.0, "final": 1.0}},
    "validation": {
        "every": 2,
        "tasks": {
            "worlds": {"count": 1, "first_seed": 5002, "entities": 80, "questions": 60},
            "split": "test",
            "limit": 4,
        },
    },
}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def launched(out):
    """Two processes under torchrun, which waits for them as long as the documentation says."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "--shutdown-timeout=600", "-m", "tests.rl.training_run", str(out)]
    command += [f"{key}={json.dumps(value)}" for key, value in CHANGES.items()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def interrupted(out):
    """Ctrl-C among the episodes of the first step; gives what was printed afterwards."""
    process = launched(out)
    for line in process.stdout:
        if line.startswith("stage collect"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len({os.getsid(one.pid) for one in family}) >= 3  # two processes, and the engine's own
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does; torchrun passes it on to its groups
    rest, _ = process.communicate(timeout=600)
    assert process.returncode == 1, rest[-3000:]  # torchrun's own, as documented
    assert psutil.wait_procs(family, timeout=60)[1] == []
    return rest


def test_two_processes_run_as_one_does(tmp_path, micro):
    """The same episodes and rewards in the first step; what follows differs by rounding alone.

    Ctrl-C ends the run at the end of its first step; the same command goes on from there.
    """
    rest = interrupted(tmp_path / "two")
    assert "step 1\n" in rest
    assert "step 2\n" not in rest
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert (report["interrupted"], report["steps"]) == (True, 1)
    assert json.loads((tmp_path / "two" / "checkpoint" / "current.json").read_text())["step"] == 1
    process = launched(tmp_path / "two")
    rest, _ = process.communicate(timeout=600)
    assert process.returncode == 0, rest[-3000:]
    assert [line for line in rest.splitlines() if line.startswith("step")] == ["step 2"]
    first = {**CHANGES, "steps": 1, "validation": {"every": 0}}  # the learning rate stays the same
    assert run(tmp_path / "one", tmp_path / "home", **first).finished
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    for name in ("reward/searches", "right", "turns", "tokens", "passes"):
        assert two[0][name] == one[0][name], name
    assert two[0]["reward/gain"] == pytest.approx(one[0]["reward/gain"], abs=1e-5) != 0.0
    for name in ("loss", "grad_norm", "advantage_abs", "critic/mse", "critic/grad_norm"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-5), name
    assert all(row["sync_gap"] < 1e-3 and row["gap_mean"] < 1e-4 for row in two)
    made = tmp_path / "two" / "policy"
    whole, again = (
        load_file(made / "model.safetensors"),
        merged_model(micro, made / "adapter").state_dict(),
    )
    assert all(
        torch.allclose(again[name].float(), t.float(), atol=1e-5) for name, t in whole.items()
    )
    assert [v.step for v in read_history(tmp_path / "two").validations] == [0, 2]
    with TrajectoryStore.open(tmp_path / "two" / "trajectories.sqlite") as store:
        assert store.count() == 2 * 9 + 2 * 4
