"""A child that stands alone, among real processes: the engine's, without an engine."""

import os
import signal
import subprocess
import sys

import psutil

SCRIPT = """
import multiprocessing, os, signal, time
from agent.policies.vllm_child import stand_alone

def child():
    stand_alone()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
"""


def test_a_child_hears_no_ctrl_c_of_its_parents_group_and_ends_with_its_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    child = psutil.Process(int(parent.stdout.readline()))
    os.killpg(parent.pid, signal.SIGINT)
    assert psutil.wait_procs([child], timeout=1)[1] == [child]
    assert parent.poll() is None
    parent.send_signal(signal.SIGKILL)
    assert parent.wait(timeout=30) == -signal.SIGKILL
    assert psutil.wait_procs([child], timeout=30)[1] == []
