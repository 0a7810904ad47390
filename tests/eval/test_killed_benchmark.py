"""`benchmarks/killed.py`: what it takes for the same, and what it leaves behind."""

import subprocess
import sys
import time

import pytest

from agent.store import TrajectoryStore
from benchmarks.killed import alike, begun, compared, killed, stored, whole
from eval.command import score
from tests.eval.runs import questions, run_folder

STORE = """
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1] + "/trajectories.sqlite")
store.execute("CREATE TABLE IF NOT EXISTS episodes (id TEXT)")
store.execute("INSERT INTO episodes VALUES (1)")
store.commit()
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def command(out, seconds, code):
    return [sys.executable, "-c", STORE, str(out), str(seconds), str(code)]


@pytest.mark.parametrize("name", ["a", "with # and %20"])
def test_a_run_is_killed_after_its_first_new_episode(tmp_path, name):
    out, log = tmp_path / name, tmp_path / "log"
    out.mkdir()
    assert stored(out) == 0
    for number in (1, 2):
        began = time.monotonic()
        assert killed(command(out, 60, 0), out, log, after=0.5) == number
        assert 0.5 < time.monotonic() - began < 30
    assert killed(command(out, 0, 0), out, log, after=5) is None


def test_a_run_that_fails_is_no_run_that_ended(tmp_path):
    with pytest.raises(SystemExit, match="exit code 3"):
        killed(command(tmp_path, 0, 3), tmp_path, tmp_path / "log", after=5)
    with pytest.raises(SystemExit, match="exit code 3"):
        whole(command(tmp_path, 0, 3), tmp_path / "log")


def test_nothing_runs_on_when_the_benchmark_is_interrupted(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        begun(command(tmp_path, 60, 0), tmp_path / "log") as process,
    ):
        raise KeyboardInterrupt
    assert process.poll() == -9


def test_what_differs_is_counted(tmp_path):
    alone, again = tmp_path / "alone", tmp_path / "again"
    run_folder(alone, questions(6), said=lambda task: "x")
    run_folder(again, questions(6), said=lambda task: "y" if task.id == "q2" else "x")
    for out in (alone, again):
        score(out, "", False)
    found = compared(alone, again)
    assert found == {
        "questions": 6, "stored_once": 6, "same_tokens": 6, "same_scores": 5, "others": 0,
    }  # fmt: skip
    with TrajectoryStore.open(again / "trajectories.sqlite") as store:
        store.delete([next(store.query()).id])
    lost = compared(alone, again)
    assert (lost["stored_once"], lost["same_tokens"], lost["others"]) == (5, 5, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [(0.5, 0.500001, True), (0.5, 0.51, False), (None, None, True), (None, 0.00001, False)],
)
def test_confidences_are_the_same_to_rounding(ours, theirs, same):
    one, other = ({"right": 1.0, "confidence": value, "usage": {}} for value in (ours, theirs))
    assert alike(one, other) == same
    assert not alike(one, {**other, "right": 0.0})


def test_the_script_tells_its_options():
    done = subprocess.run(
        [sys.executable, "benchmarks/killed.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--kills" in done.stdout
