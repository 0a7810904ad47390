"""An engine in a child process of a run that has joined a world of processes."""

import json
import os
import subprocess
import sys

import pytest

from agent.policies.catalog import resolve
from tests.conftest import ROOT


def test_the_main_process_of_a_zero_3_run_syncs_an_engine_of_its_own(models_dir, tmp_path):
    """Two processes, real gloo, real DeepSpeed, real vLLM; the environment is as it was afterwards."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node", "2", "-m", "tests.rl.sync_world"]
    folders = [str(resolve("micro", models_dir)), str(tmp_path)]
    done = subprocess.run(
        [*launcher, *script, *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["tensors"] == 69
    assert told["gap"] < 1e-3
    assert told["moved"]
    assert "layers.4.self_attn.v_proj.weight' differs in the folder already" in told["refused"]
    assert told["environment"] == ["0", "2"]
    assert "is not whole" in told["apart"]
